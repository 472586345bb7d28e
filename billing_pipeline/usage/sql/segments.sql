-- Usage of segments of a day: one row per organization and segment.
WITH instants AS (  -- one organization, sensor and time: one reading
    SELECT DISTINCT organization_id, sensor_id, instant
    FROM (SELECT *, least(instant, 0) AS time_defect FROM readings)
    WHERE organization_id IN (SELECT organization_id FROM segments)
        AND {quarantine_reason} IS NULL
),
volume AS (
    SELECT organization_id, start_s, count(*) AS reading_volume
    FROM segments JOIN instants USING (organization_id)
    WHERE instant >= start_s * 1000000000 AND instant < end_s * 1000000000
    GROUP BY ALL
),
seen AS (
    SELECT
        organization_id,
        sensor_id,
        epoch(first_at - $midnight::TIMESTAMP) AS first_s,
        epoch(last_at - $midnight::TIMESTAMP) AS last_s
    FROM read_parquet($window)
    WHERE organization_id IN (SELECT organization_id FROM segments)
),
active AS (
    -- A sensor's first and last time of each day are enough. A window of whole days that ends
    -- inside one day begins inside another: it contains the beginning of the last day, the end of
    -- the first day, and all of the days between.
    SELECT organization_id, start_s, count(DISTINCT sensor_id) AS active_sensors
    FROM segments JOIN seen USING (organization_id)
    WHERE first_s < end_s AND last_s >= end_s - $window_seconds
    GROUP BY ALL
)
SELECT
    organization_id,
    start_s,
    coalesce(active_sensors, 0)::BIGINT,
    coalesce(reading_volume, 0)::BIGINT
FROM segments
LEFT JOIN volume USING (organization_id, start_s)
LEFT JOIN active USING (organization_id, start_s);
