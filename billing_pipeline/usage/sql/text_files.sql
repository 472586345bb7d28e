-- One row per text file: its rows; then for each needed column the rows that have it (NULL: absent;
-- blank counts), that give a value, and whose value is of the right type.
SELECT
    file,
    count(*),
    count(organization_id),
    count(*) FILTER (WHERE trim(organization_id) <> ''),
    count(*) FILTER (WHERE trim(organization_id) <> '' AND organization_id <> chr(0)),
    count(sensor_id),
    count(*) FILTER (WHERE trim(sensor_id) <> ''),
    count(*) FILTER (WHERE trim(sensor_id) <> '' AND sensor_id <> chr(0)),
    count(recorded_at),
    count(*) FILTER (WHERE instant <> -1),
    count(*) FILTER (WHERE instant NOT IN (-1, -2))
FROM text_rows
GROUP BY file
ORDER BY file;
