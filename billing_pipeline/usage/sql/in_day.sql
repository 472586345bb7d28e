-- Nanoseconds since the usage day began; -3 for an instant outside the day. `ticks` count from 1970.
-- NULL ticks are an instant beyond the clock (infinity, or the year 9999 in nanoseconds).
CREATE TEMP MACRO in_day(ticks, ns_per_tick) AS
    CASE
        WHEN ticks >= $day_start_ns // ns_per_tick
            AND ticks < ($day_start_ns + 86400000000000) // ns_per_tick
        THEN (ticks - $day_start_ns // ns_per_tick) * ns_per_tick
        ELSE -3
    END;
