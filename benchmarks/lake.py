"""Finding and counting the changed days of a lake of years, and windows of many days.

The lake has many small files a day. Every day is counted once. Then each day is compared with its
snapshot, one late file arrives, and only its day is counted again.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.snapshot import Snapshot, is_current, take_snapshot
from billing_pipeline.usage.sources.folders import Folder

FIRST = date(2023, 1, 1)
T = TypeVar("T")


def measure_lake(home: Path, days: int, files: int) -> dict[str, Any]:
    """One row of the table: a lake of `days` with `files` each; keys are its columns."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="lake-") as name:
        lake, kept = Folder(f"{name}/readings"), Folder(f"{name}/snapshots")
        engine = Engine("1GB")
        every = [FIRST + timedelta(days=n) for n in range(days)]
        for day in every:
            _write_files(Path(name, "readings"), day, files)
            take_snapshot(engine, lake, kept, day)
        current, listing = _timed(lambda: [is_current(lake, kept, day) for day in every])
        assert all(current)
        late = every[days // 2]
        folder = Path(name, "readings", f"reading_date={late}")
        shutil.copy(folder / "0.parquet", folder / "late.parquet")
        changed = [day for day in every if not is_current(lake, kept, day)]
        assert changed == [late]
        snapshot, counting = _timed(lambda: take_snapshot(engine, lake, kept, late))
    assert snapshot.counted.duplicates == files - 1 + 1
    return {
        "days": days,
        "files": days * files,
        "find the changed days s": round(listing, 1),
        "count the changed day s": round(counting, 2),
    }


def measure_window(home: Path, sensors: int, window: int) -> dict[str, Any]:
    """One row: active sensors over a window of days, from their stored activity."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="window-") as name:
        lake, kept = Folder(f"{name}/readings"), Folder(f"{name}/snapshots")
        engine = Engine("4GB")
        every = [FIRST + timedelta(days=n) for n in range(window)]
        for number, day in enumerate(every):
            _write_sensors(Path(name, "readings"), day, sensors, number)

        def snapshot() -> Snapshot:
            return take_snapshot(engine, lake, kept, every[-1], window_days=window)

        snapshot()  # counts each day once
        again, seconds = _timed(snapshot)
    assert sum(o.active_sensors for o in again.organizations) == sensors
    return {"sensors": sensors, "days": window, "snapshot from activity s": round(seconds, 2)}


def _write_files(home: Path, day: date, files: int) -> None:
    """Write one small file many times under different names: one reading and its duplicates."""
    folder = home / f"reading_date={day}"
    folder.mkdir(parents=True)
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT 'acme' AS organization_id, 's' AS sensor_id, "
            f"TIMESTAMP '{day} 12:00:00' AS recorded_at, 21.5 AS value) "
            f"TO '{folder}/0.parquet'"
        )
    for number in range(1, files):
        shutil.copy(folder / "0.parquet", folder / f"{number}.parquet")


def _write_sensors(home: Path, day: date, sensors: int, number: int) -> None:
    """Write a reading of nine sensors in ten; the tenth has readings on other days."""
    folder = home / f"reading_date={day}"
    folder.mkdir(parents=True)
    with duckdb.connect() as connection:
        connection.execute(
            f"""COPY (
                SELECT format('org-{{:05}}', s % 10000) AS organization_id,
                    format('sensor-{{:07}}', s) AS sensor_id,
                    TIMESTAMP '{day}' + to_milliseconds(s) AS recorded_at, 21.5 AS value
                FROM range({sensors}) sensors(s) WHERE s % 10 <> {number % 10}
            ) TO '{folder}/readings.parquet'"""
        )


def _timed(act: Callable[[], T]) -> tuple[T, float]:
    begun = time.perf_counter()
    done = act()
    return done, time.perf_counter() - begun
