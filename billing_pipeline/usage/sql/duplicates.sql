-- One organization's valid readings that have more than one row.
SELECT
    sensor_id,
    $usage_day::TIMESTAMP + to_microseconds(instant // 1000) AS recorded_at,
    count(*) AS rows,
    count(DISTINCT (value_number, value_text)) AS distinct_values
FROM (SELECT *, least(instant, 0) AS time_defect FROM readings)
WHERE organization_id = $organization_id AND {quarantine_reason} IS NULL
GROUP BY sensor_id, instant
HAVING count(*) > 1
ORDER BY sensor_id, instant
LIMIT $most;
