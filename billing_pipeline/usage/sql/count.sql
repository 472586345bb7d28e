-- Exact counting: one row per organization, sensor and kind of time defect (0: none).
-- The one definition of it: DuckDB and Spark both run this text, so it keeps to what both understand.
WITH variants AS (  -- rows equal in everything that matters
    SELECT organization_id, sensor_id, instant, value_number, value_text, count(*) AS copies
    FROM readings
    GROUP BY ALL
),
instants AS (  -- one organization, sensor and time: one reading
    SELECT organization_id, sensor_id, instant, count(*) AS variants, CAST(sum(copies) AS BIGINT) AS copies
    FROM variants
    GROUP BY ALL
),
sensors AS (
    SELECT
        organization_id,
        sensor_id,
        least(instant, 0) AS time_defect,
        count(*) AS readings,
        CAST(sum(copies) AS BIGINT) AS rows_read,
        CAST(sum(copies - variants) AS BIGINT) AS exact_duplicates,
        CAST(sum(variants - 1) AS BIGINT) AS conflicting_duplicates,
        min(instant) AS first_at,
        max(instant) AS last_at
    FROM instants
    GROUP BY ALL
)
SELECT
    *,
    CASE
        WHEN organization_id IS NULL OR trim(BOTH $blanks FROM organization_id) = ''
            THEN 'organization_id_missing'
        WHEN sensor_id IS NULL OR trim(BOTH $blanks FROM sensor_id) = '' THEN 'sensor_id_missing'
        WHEN contains(organization_id, chr(0)) OR length(organization_id) > 255
            THEN 'organization_id_invalid'
        WHEN contains(sensor_id, chr(0)) THEN 'sensor_id_invalid'
        WHEN time_defect = -1 THEN 'recorded_at_missing'
        WHEN time_defect = -2 THEN 'recorded_at_invalid'
        WHEN time_defect = -3 THEN 'recorded_at_outside_day'
    END AS quarantine_reason
FROM sensors
