-- The usage snapshot: one row per organization with a reading in the window or on the day.
WITH active AS (  -- sensors with a reading in [day's end - window, day's end)
    SELECT organization_id, count(*) AS active_sensors
    FROM (SELECT DISTINCT organization_id, sensor_id FROM read_parquet($window))
    GROUP BY organization_id
),
volume AS (
    SELECT
        organization_id,
        sum(readings)::BIGINT AS reading_volume,
        sum(exact_duplicates)::BIGINT AS exact_duplicates,
        sum(conflicting_duplicates)::BIGINT AS conflicting_duplicates
    FROM read_parquet($today)
    GROUP BY organization_id
)
SELECT
    $usage_day::DATE AS usage_day,
    organization_id,
    active_sensors,
    coalesce(reading_volume, 0)::BIGINT AS reading_volume,
    coalesce(exact_duplicates, 0)::BIGINT AS exact_duplicates,
    coalesce(conflicting_duplicates, 0)::BIGINT AS conflicting_duplicates
FROM active LEFT JOIN volume USING (organization_id)  -- the window contains the day
ORDER BY organization_id
