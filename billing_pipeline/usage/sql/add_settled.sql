-- Counts of the rows left over, and of those that the kernel settled: their sum.
ALTER TABLE counted RENAME TO left_over;
CREATE TEMP TABLE counted AS
SELECT
    organization_id,
    sensor_id,
    time_defect,
    sum(readings)::BIGINT AS readings,
    sum(rows_read)::BIGINT AS rows_read,
    sum(exact_duplicates)::BIGINT AS exact_duplicates,
    sum(conflicting_duplicates)::BIGINT AS conflicting_duplicates,
    min(first_at) AS first_at,
    max(last_at) AS last_at,
    quarantine_reason
FROM (
    FROM left_over
    UNION ALL BY NAME
    SELECT
        organization_id,
        sensor_id,
        0::BIGINT AS time_defect,
        readings,
        readings + exact_duplicates AS rows_read,
        exact_duplicates,
        0::BIGINT AS conflicting_duplicates,
        first_at,
        last_at
    FROM settled
)
GROUP BY ALL;
