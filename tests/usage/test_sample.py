"""The known counts of the Birmingham readings, by a route that shares nothing with DuckDB.

The figures come from the sample's description and from counting the published file with sets.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from datetime import date, timedelta
from importlib import resources
from pathlib import Path

import pytest

from billing_pipeline.sandbox.sample import LAST_DAY, load_sample, organization_of
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.snapshot import Snapshot, take_snapshot
from billing_pipeline.usage.sources.folders import Folder

FIRST_DAY = date(2016, 10, 4)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> dict[date, Snapshot]:
    """A snapshot of every day, with the sample where it was published."""
    home = tmp_path_factory.mktemp("sample")
    assert load_sample(home / "readings", LAST_DAY) == (73, 35_717)
    readings, kept = Folder(str(home / "readings")), Folder(str(home / "snapshots"))
    days = [FIRST_DAY + timedelta(days=n) for n in range((LAST_DAY - FIRST_DAY).days + 1)]
    return {day: take_snapshot(Engine("1GB"), readings, kept, day) for day in days}


def published() -> list[tuple[str, str]]:
    """Sensor and local time of each published row."""
    data = resources.files("billing_pipeline.sandbox") / "data" / "birmingham-parking.csv.gz"
    with data.open("rb") as file, gzip.open(file, "rt", newline="") as text:
        return [(row["SystemCodeNumber"], row["LastUpdated"]) for row in csv.DictReader(text)]


@pytest.mark.parametrize(
    ("month", "raw", "distinct"), [(10, 12_474, 12_367), (11, 15_012, 14_915), (12, 8_231, 8_219)]
)
def test_each_month_has_its_known_rows_and_readings(
    snapshots: dict[date, Snapshot], month: int, raw: int, distinct: int
) -> None:
    counted = [s.counted for day, s in snapshots.items() if day.month == month]
    assert sum(c.rows_read for c in counted) == raw
    assert sum(c.readings for c in counted) == distinct
    assert sum(c.exact_duplicates for c in counted) == raw - distinct
    assert sum(c.conflicting_duplicates + c.quarantined_rows for c in counted) == 0


@pytest.mark.parametrize(
    ("day", "active"),
    [
        (date(2016, 10, 31), 28),
        (date(2016, 11, 30), 29),
        (date(2016, 12, 16), 29),
        (date(2016, 12, 17), 26),
        (date(2016, 12, 18), 27),
        (date(2016, 12, 19), 26),
    ],
)
def test_the_known_changes_of_active_sensors_are_counted(
    snapshots: dict[date, Snapshot], day: date, active: int
) -> None:
    assert sum(o.active_sensors for o in snapshots[day].organizations) == active


def test_the_four_dates_without_data_are_days_without_a_folder(
    snapshots: dict[date, Snapshot],
) -> None:
    empty = [day for day, snapshot in snapshots.items() if not snapshot.counted.folder_exists]
    assert empty == [date(2016, 10, 20), date(2016, 10, 21), date(2016, 12, 3), date(2016, 12, 4)]
    assert all(snapshots[day].organizations == () for day in empty)


def test_every_organization_and_day_equals_a_count_with_sets(
    snapshots: dict[date, Snapshot],
) -> None:
    readings: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for sensor, at in published():
        readings[at[:10], organization_of(sensor)].add((sensor, at))
    expected = {
        key: (len({sensor for sensor, _ in found}), len(found)) for key, found in readings.items()
    }
    counted = {
        (day.isoformat(), o.organization_id): (o.active_sensors, o.reading_volume)
        for day, snapshot in snapshots.items()
        for o in snapshot.organizations
    }
    assert counted == expected
    assert len({organization for _, organization in expected}) == 11


def test_shifting_the_sample_by_whole_days_changes_no_count(tmp_path: Path) -> None:
    load_sample(tmp_path / "readings", date(2026, 3, 1))
    snapshot = take_snapshot(
        Engine("1GB"),
        Folder(str(tmp_path / "readings")),
        Folder(str(tmp_path / "snapshots")),
        date(2026, 3, 1),
    )
    assert sum(o.active_sensors for o in snapshot.organizations) == 26
