-- One row per text file: its number of rows; then for each needed column how many rows have it
-- (NULL: absent; blank counts), how many give a value, and how many values are of the right type.
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
