"""Usage of organizations in segments of a day, counted from the readings.

Reading volume is counted by `recorded_at`. Sensors are active at a segment's end if they have a
reading in the window that ends there; the first and last times in sensor activity show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from billing_pipeline.usage.activity import ACTIVITY_FILE, activity_for, day_folder
from billing_pipeline.usage.engine import Engine, sql
from billing_pipeline.usage.readings import create_readings
from billing_pipeline.usage.sources.day_files import list_day
from billing_pipeline.usage.sources.folders import Folder

Counts = tuple[int, int]
"""Active sensors at the segment's end, and reading volume."""


def usage_in_segments(
    engine: Engine,
    readings: Folder,
    snapshots: Folder,
    day: date,
    segments: Mapping[str, Sequence[tuple[int, int]]],
    *,
    window_days: int = 1,
) -> dict[str, list[Counts]]:
    """By organization, the counts of each of its segments of `day`.

    `segments` are by organization, each [start, end) in seconds since the day began. Raises
    DAY_ERRORS.
    """
    window = [day - timedelta(days=back) for back in range(window_days, -1, -1)]
    for each in window:
        activity_for(engine, readings, snapshots, each)
    paths = [snapshots.pattern(day_folder(each), ACTIVITY_FILE) for each in window]
    wanted = [
        (organization, start, end)
        for organization, its_segments in segments.items()
        for start, end in its_segments
    ]
    with engine.connect(readings, snapshots) as connection:
        create_readings(connection, readings, list_day(readings, day))
        connection.execute(
            "CREATE TEMP TABLE segments (organization_id VARCHAR, start_s BIGINT, end_s BIGINT)"
        )
        connection.executemany("INSERT INTO segments VALUES (?, ?, ?)", wanted)
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        rows = connection.execute(
            sql("segments"),
            {
                "window": paths,
                "midnight": midnight.strftime("%Y-%m-%d %H:%M:%S"),
                "window_seconds": window_days * 86_400,
            },
        ).fetchall()
    found = {
        (organization, start): (active, volume) for organization, start, active, volume in rows
    }
    return {o: [found[o, start] for start, _ in its_own] for o, its_own in segments.items()}
