-- One row per text file: rows, a wrong type if any, rows that have each needed column (NULL: it
-- is absent; blank counts), and how many times are given and how many of them are instants.
SELECT
    file,
    count(*),
    min(wrong_type),
    count(organization_id),
    count(sensor_id),
    count(recorded_at),
    count(*) FILTER (WHERE instant <> -1),
    count(*) FILTER (WHERE instant NOT IN (-1, -2))
FROM text_rows
GROUP BY file
ORDER BY file;
