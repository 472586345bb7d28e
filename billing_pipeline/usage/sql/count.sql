-- Exact counting: one row per organization, sensor and kind of time defect (0: none).
-- This is the only definition of counting. DuckDB and Spark both run it, so it uses only what both
-- understand.
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
SELECT *, {quarantine_reason} AS quarantine_reason
FROM sensors
