"""The Birmingham car-park readings as daily Parquet, shifted by whole days to end on a given day.

They are real sensor readings with duplicates, gaps, and sensors that appear and disappear.
data/NOTICE has their origin and licence. Local times become UTC (clocks went back on 2016-10-30).
"""

from __future__ import annotations

from datetime import date, timedelta
from importlib import resources
from pathlib import Path

import pandas as pd

LAST_DAY = date(2016, 12, 19)
"""The sample's last day as published."""

_ORGANIZATIONS = {
    "Broad Street": "broad-street",
    "Bull Ring": "bull-ring",
    "Shopping": "shopping",
    "NIA Car Parks": "nia",
    "NIA North": "nia",
    "NIA South": "nia",
}


def organization_of(sensor: str) -> str:
    """The operator that a sensor's code names."""
    if sensor.startswith("BHM"):
        return sensor[3:6].lower()
    if sensor.startswith("Others-CCCPS"):
        return "cccps"
    return _ORGANIZATIONS[sensor]


def read_sample() -> pd.DataFrame:
    """The readings as published: organization_id, sensor_id, recorded_at (UTC), value, capacity."""
    source = resources.files("billing_pipeline.sandbox") / "data" / "birmingham-parking.csv.gz"
    with resources.as_file(source) as path:
        raw = pd.read_csv(path)
    local = pd.to_datetime(raw["LastUpdated"]).dt.tz_localize("Europe/London")
    return pd.DataFrame(
        {
            "organization_id": raw["SystemCodeNumber"].map(organization_of),
            "sensor_id": raw["SystemCodeNumber"],
            "recorded_at": local.dt.tz_convert("UTC"),
            "value": raw["Occupancy"].astype("int64"),
            "capacity": raw["Capacity"].astype("int64"),
        }
    )


def load_sample(folder: Path, last_day: date) -> tuple[int, int]:
    """Write the sample so that it ends on `last_day`. Returns the days and rows written."""
    readings = read_sample()
    readings["recorded_at"] += timedelta(days=(last_day - LAST_DAY).days)
    days = readings.groupby(readings["recorded_at"].dt.date)
    for day, rows in days:
        target = folder / f"reading_date={day}"
        target.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(target / "birmingham-parking.parquet", index=False)
    return len(days), len(readings)
