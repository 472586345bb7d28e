-- Rows of files that give their times as text, with their file, so that columns can be checked.
CREATE TEMP TABLE text_rows (
    file VARCHAR,
    organization_id VARCHAR,
    sensor_id VARCHAR,
    recorded_at VARCHAR,
    instant BIGINT,
    value_number DOUBLE,
    value_text VARCHAR
);
CREATE TEMP VIEW text_readings AS SELECT * EXCLUDE (recorded_at) FROM text_rows;
