-- Sensor activity: one row per usage day, organization and sensor.
SELECT
    $usage_day::DATE AS usage_day,
    organization_id,
    sensor_id,
    readings,
    $usage_day::TIMESTAMP + to_microseconds(first_at // 1000) AS first_at,
    $usage_day::TIMESTAMP + to_microseconds(last_at // 1000) AS last_at,
    exact_duplicates,
    conflicting_duplicates
FROM counted
WHERE quarantine_reason IS NULL
ORDER BY organization_id, sensor_id
