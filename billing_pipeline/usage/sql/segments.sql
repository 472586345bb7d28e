-- The usage of parts of a day: one row per organization and part.
WITH instants AS (  -- one organization, sensor and time: one reading
    SELECT DISTINCT organization_id, sensor_id, instant
    FROM readings
    WHERE organization_id IN (SELECT organization_id FROM parts)
        AND instant >= 0
        AND trim(sensor_id, $blanks) <> ''
        AND NOT contains(sensor_id, chr(0))
),
volume AS (
    SELECT organization_id, start_s, count(*) AS reading_volume
    FROM parts JOIN instants USING (organization_id)
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
    WHERE organization_id IN (SELECT organization_id FROM parts)
),
active AS (
    -- A day's first and last times tell, because a window of whole days that ends inside one day
    -- begins inside another one: of the last day it takes the beginning, of the first the end.
    SELECT organization_id, start_s, count(DISTINCT sensor_id) AS active_sensors
    FROM parts JOIN seen USING (organization_id)
    WHERE first_s < end_s AND last_s >= end_s - $window_seconds
    GROUP BY ALL
)
SELECT
    organization_id,
    start_s,
    coalesce(active_sensors, 0)::BIGINT,
    coalesce(reading_volume, 0)::BIGINT
FROM parts
LEFT JOIN volume USING (organization_id, start_s)
LEFT JOIN active USING (organization_id, start_s);
