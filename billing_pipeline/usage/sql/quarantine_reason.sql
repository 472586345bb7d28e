-- Why a row is quarantined; NULL if it is valid. The rule stands only here: `engine.sql` puts it
-- into the other files. It reads organization_id, sensor_id and time_defect (0: a time within the
-- day). DuckDB and Spark both run it.
CASE
    WHEN organization_id IS NULL OR trim(BOTH '{blanks}' FROM organization_id) = ''
        THEN 'organization_id_missing'
    WHEN sensor_id IS NULL OR trim(BOTH '{blanks}' FROM sensor_id) = '' THEN 'sensor_id_missing'
    WHEN contains(organization_id, chr(0)) OR length(organization_id) > {longest_id}
        THEN 'organization_id_invalid'
    WHEN contains(sensor_id, chr(0)) OR length(sensor_id) > {longest_id} THEN 'sensor_id_invalid'
    WHEN time_defect = -1 THEN 'recorded_at_missing'
    WHEN time_defect = -2 THEN 'recorded_at_invalid'
    WHEN time_defect = -3 THEN 'recorded_at_outside_day'
END
