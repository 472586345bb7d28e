-- Quarantined rows by reason and organization, the largest number first.
SELECT quarantine_reason, organization_id, sum(rows_read)::BIGINT AS quarantined
FROM counted
WHERE quarantine_reason IS NOT NULL
GROUP BY ALL
ORDER BY quarantined DESC, quarantine_reason, organization_id;
