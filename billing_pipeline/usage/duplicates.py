"""The readings of an organization that had more than one row, to explain a day's counts."""

from __future__ import annotations

from datetime import date
from typing import Any

from billing_pipeline.usage.engine import Engine, sql
from billing_pipeline.usage.readings import create_readings
from billing_pipeline.usage.sources.day_files import list_day
from billing_pipeline.usage.sources.folders import Folder

MOST = 200
"""The most readings that are listed. The counts by sensor are always complete."""


def duplicates_of(
    engine: Engine, readings: Folder, day: date, organization_id: str
) -> list[dict[str, Any]]:
    """The first MOST readings of a day with several rows: sensor, instant, rows, distinct values.

    Quarantined rows are no readings. Raises DAY_ERRORS.
    """
    with engine.connect(readings) as connection:
        create_readings(connection, readings, list_day(readings, day))
        result = connection.execute(
            sql("duplicates"),
            {"organization_id": organization_id, "usage_day": day.isoformat(), "most": MOST},
        )
        names = [column[0] for column in result.description]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    return [{**row, "recorded_at": str(row["recorded_at"])} for row in rows]
