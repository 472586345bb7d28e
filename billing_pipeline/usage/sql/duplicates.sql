-- One organization's readings that have more than one row.
SELECT
    sensor_id,
    $usage_day::TIMESTAMP + to_microseconds(instant // 1000) AS recorded_at,
    count(*) AS rows,
    count(DISTINCT (value_number, value_text)) AS distinct_values
FROM readings
WHERE organization_id = $organization_id AND instant >= 0
GROUP BY sensor_id, instant
HAVING count(*) > 1
ORDER BY sensor_id, instant
LIMIT $most;
