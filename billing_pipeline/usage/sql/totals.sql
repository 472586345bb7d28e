-- The totals of a day: readings, exact duplicates, conflicting duplicates, sensors.
SELECT
    coalesce(sum(readings) FILTER (WHERE quarantine_reason IS NULL), 0)::BIGINT,
    coalesce(sum(exact_duplicates) FILTER (WHERE quarantine_reason IS NULL), 0)::BIGINT,
    coalesce(sum(conflicting_duplicates) FILTER (WHERE quarantine_reason IS NULL), 0)::BIGINT,
    count(*) FILTER (WHERE quarantine_reason IS NULL)
FROM counted;
