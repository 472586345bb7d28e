-- Add the kernel's counts to those of the rows that it left to SQL.
ALTER TABLE counted RENAME TO counted_by_sql;
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
    FROM counted_by_sql
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
    FROM kernel_counts
)
GROUP BY ALL;
