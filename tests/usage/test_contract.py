"""The readings contract, case by case, through the snapshot it leads to."""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from billing_pipeline.errors import UnusableInput
from billing_pipeline.usage.activity import (
    DAY_ERRORS,
    CountedDay,
    activity_for,
    count_day,
    sensors_of,
)
from billing_pipeline.usage.duplicates import duplicates_of
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.segments import usage_in_segments
from billing_pipeline.usage.snapshot import Snapshot, is_current, load_snapshot, take_snapshot
from billing_pipeline.usage.sources.folders import Folder

DAY = date(2026, 3, 10)
MIDNIGHT = datetime(2026, 3, 10, tzinfo=UTC).replace(tzinfo=None)  # as a naive column has it
ENGINE = Engine("512MB")
HEADER = "organization_id,sensor_id,recorded_at,value\n"


class Lake:
    def __init__(self, home: Path, engine: Engine) -> None:
        self.home = home
        self.engine = engine
        self.readings = Folder(str(home / "readings"))
        self.snapshots = Folder(str(home / "snapshots"))

    def folder(self, day: date = DAY) -> Path:
        folder = self.home / "readings" / f"reading_date={day}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def csv(self, text: str, name: str = "a.csv", day: date = DAY) -> Path:
        path = self.folder(day) / name
        path.write_text(text, encoding="utf-8")
        return path

    def jsonl(self, *rows: Any, name: str = "a.jsonl") -> Path:
        path = self.folder() / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def parquet(self, table: pa.Table, name: str = "a.parquet") -> Path:
        path = self.folder() / name
        pq.write_table(table, path)
        return path

    def count(self, day: date = DAY) -> CountedDay:
        return count_day(self.engine, self.readings, self.snapshots, day)

    def snapshot(self, day: date = DAY, window_days: int = 1) -> Snapshot:
        return take_snapshot(
            self.engine, self.readings, self.snapshots, day, window_days=window_days
        )

    def usage(self, **options: Any) -> dict[str, tuple[int, int]]:
        return {
            o.organization_id: (o.active_sensors, o.reading_volume)
            for o in self.snapshot(**options).organizations
        }


@pytest.fixture(params=["duckdb", "spark"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """Every case holds on both engines."""
    spark = request.getfixturevalue("spark") if request.param == "spark" else None
    return Lake(tmp_path / "a lake [with] 'odd' name", replace(ENGINE, spark=spark))


def row(**changes: Any) -> dict[str, Any]:
    return {
        "organization_id": "a",
        "sensor_id": "s",
        "recorded_at": "2026-03-10T12:00:00Z",
        "value": 1,
        **changes,
    }


# One reading, however it is written ------------------------------------------------------------


def test_the_same_reading_in_three_formats_and_types_is_one_reading(lake: Lake) -> None:
    sensor = uuid.UUID("3d3b5a54-1d4c-4b54-9a3f-0f9f4be0a001")
    at = datetime(2026, 3, 10, 12, tzinfo=UTC)
    lake.parquet(
        pa.table(
            {
                "organization_id": pa.array([42], pa.int32()),
                "sensor_id": pa.array([sensor.bytes], pa.uuid()),
                "recorded_at": pa.array([at], pa.timestamp("us", "Europe/London")),
                "value": pa.array([21.5], pa.float32()),
            }
        )
    )
    lake.parquet(
        pa.table(
            {
                "recorded_at": pa.array([at.replace(tzinfo=None)], pa.timestamp("ns")),
                "organization_id": pa.array(["42"]).dictionary_encode(),
                "value": pa.array([21.5], pa.float64()),
                "sensor_id": pa.array([str(sensor)]),
                "reading_id": pa.array([1]),
            }
        ),
        "b.parquet",
    )
    lake.csv(f"{HEADER}42,{sensor},2026-03-10 14:00:00+02:00,21.50\n")
    lake.jsonl(row(organization_id=42, sensor_id=str(sensor), value=21.5))
    counted = lake.count()
    assert (counted.rows_read, counted.readings) == (4, 1)
    assert (counted.exact_duplicates, counted.conflicting_duplicates) == (3, 0)
    assert lake.usage() == {"42": (1, 1)}


def test_times_without_a_zone_are_utc_and_offsets_are_honoured(lake: Lake) -> None:
    lake.csv(
        HEADER
        + "a,s,2026-03-10T00:00:00,1\n"  # midnight UTC: the day's first instant
        + "a,s,2026-03-10T00:30:00+01:00,1\n"  # 23:30 of the day before
        + "a,s,2026-03-11T00:59:59+01:00,1\n"  # 23:59:59 of the day
        + "a,s,2026-03-11T00:00:00Z,1\n"  # the next day
    )
    counted = lake.count()
    assert counted.readings == 2
    assert counted.quarantined == {"recorded_at_outside_day": 2}


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_neighbouring_instants_are_different_readings_at_every_resolution(
    lake: Lake, unit: str
) -> None:
    first = int(datetime(2026, 3, 10, tzinfo=UTC).timestamp())
    ticks = first * {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    lake.parquet(
        pa.table(
            {
                "organization_id": ["a"] * 3,
                "sensor_id": ["s"] * 3,
                "recorded_at": pa.array([ticks, ticks + 1, ticks + 1], pa.timestamp(unit)),
            }
        )
    )
    counted = lake.count()
    assert (counted.readings, counted.exact_duplicates) == (2, 1)


def test_nanoseconds_in_text_are_kept(lake: Lake) -> None:
    lake.csv(
        HEADER
        + "a,s,2026-03-10T12:00:00.000000001Z,1\n"
        + "a,s,2026-03-10T13:00:00.000000001+01:00,1\n"
        + "a,s,2026-03-10T12:00:00.000000002Z,1\n"
    )
    counted = lake.count()
    assert (counted.readings, counted.exact_duplicates) == (2, 1)


def test_ids_are_compared_exactly_and_in_any_alphabet(lake: Lake) -> None:
    lake.jsonl(
        row(organization_id="Ünïcode"),
        row(organization_id="ünïcode"),
        row(organization_id="組織"),
        row(organization_id='a, "b"\nc'),
        row(organization_id="007"),
        row(organization_id=7),
    )
    assert set(lake.usage()) == {"Ünïcode", "ünïcode", "組織", 'a, "b"\nc', "007", "7"}


def test_ids_of_different_types_in_one_day_keep_their_own_text(lake: Lake) -> None:
    at = pa.array([MIDNIGHT], pa.timestamp("us"))
    for name, ids, value in [
        ("a", pa.array([7]), pa.array([1], pa.int8())),
        ("b", pa.array(["007"]), pa.array([300.5])),
        ("c", pa.array(["x9"]), pa.array(["on"])),
        ("d", pa.array([uuid.UUID(int=7).bytes], pa.uuid()), pa.array([True])),
        ("e", pa.array(["7"]), pa.array([1.5])),
    ]:
        lake.parquet(
            pa.table(
                {"organization_id": ["a"], "sensor_id": ids, "recorded_at": at, "value": value}
            ),
            f"{name}.parquet",
        )
    counted = lake.count()
    assert (counted.readings, counted.exact_duplicates, counted.conflicting_duplicates) == (4, 0, 1)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_names_that_look_like_patterns_are_names(lake: Lake, ending: str) -> None:
    for n, name in enumerate(["a1", "a[1]", "a?", "a*", "[a]"]):
        if ending == "parquet":
            at = pa.array([MIDNIGHT], pa.timestamp("us"))
            table = pa.table({"organization_id": ["a"], "sensor_id": [n], "recorded_at": at})
            lake.parquet(table, f"{name}.parquet")
        elif ending == "csv":
            lake.csv(HEADER + f"a,{n},2026-03-10T12:00:00,1\n", f"{name}.csv")
        else:
            lake.jsonl(row(sensor_id=n), name=f"{name}.jsonl")
    counted = lake.count()
    assert (counted.rows_read, counted.readings, counted.duplicates) == (5, 5, 0)


def test_links_are_read_and_one_that_leads_nowhere_fails_the_day(lake: Lake) -> None:
    lake.csv(HEADER + "a,s,2026-03-10T12:00:00,1\n")
    target = lake.home / "target.csv"
    target.write_text(HEADER + "a,t,2026-03-10T12:00:00,1\n")
    (lake.folder() / "link.csv").symlink_to(target)
    assert lake.usage() == {"a": (2, 2)}
    target.unlink()
    with pytest.raises(UnusableInput, match=r"link\.csv"):
        lake.count()


def test_the_same_sensor_id_in_two_organizations_is_two_sensors(lake: Lake) -> None:
    lake.jsonl(row(organization_id="a"), row(organization_id="b"))
    assert lake.usage() == {"a": (1, 1), "b": (1, 1)}


# Duplicates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "exact", "conflicting"),
    [
        ([1, 1], 1, 0),
        ([1, 2], 0, 1),
        ([1, 1, 2], 1, 1),
        ([1, None], 0, 1),
        ([None, None], 1, 0),
        (["on", "off", "on"], 1, 1),
        ([1, "1.0", 1.0], 2, 0),
    ],
)
def test_duplicates_by_value(lake: Lake, values: list[Any], exact: int, conflicting: int) -> None:
    lake.jsonl(*(row(value=value) for value in values))
    counted = lake.count()
    assert counted.readings == 1
    assert (counted.exact_duplicates, counted.conflicting_duplicates) == (exact, conflicting)


def test_a_file_delivered_twice_changes_nothing_but_the_duplicates(lake: Lake) -> None:
    text = HEADER + "".join(f"a,s{n % 3},2026-03-10T12:00:{n:02},{n}\n" for n in range(60))
    lake.csv(text)
    once = lake.usage()
    lake.csv(text, "again.csv")
    assert lake.usage() == once == {"a": (3, 60)}
    assert lake.count().exact_duplicates == 60


# Quarantine and conservation -------------------------------------------------------------------


def test_bad_rows_are_quarantined_with_a_reason_and_stop_nothing(lake: Lake) -> None:
    lake.jsonl(
        row(),
        row(organization_id=None),
        row(organization_id=" \u00a0\t"),
        row(sensor_id=""),
        row(recorded_at=None),
        row(recorded_at="yesterday"),
        row(recorded_at="2026-03-10"),
        row(recorded_at="2026-03-09T23:59:59.999999Z"),
        row(recorded_at="9999-12-31T00:00:00Z"),
    )
    counted = lake.count()
    assert counted.quarantined == {
        "organization_id_missing": 2,
        "recorded_at_invalid": 2,
        "recorded_at_missing": 1,
        "recorded_at_outside_day": 2,
        "sensor_id_missing": 1,
    }
    assert counted.conserved
    assert lake.usage() == {"a": (1, 1)}


def test_a_day_of_bad_rows_only_is_quarantined_whole_and_counts_zero(lake: Lake) -> None:
    lake.jsonl(row(sensor_id=None), row(sensor_id=None))
    counted = lake.count()
    assert (counted.readings, counted.quarantined_rows) == (0, 2)
    assert lake.usage() == {}


def test_a_day_without_a_folder_has_zero_readings_on_record(lake: Lake) -> None:
    lake.folder(date(2026, 3, 9))
    snapshot = lake.snapshot()
    assert not snapshot.counted.folder_exists
    assert snapshot.organizations == ()
    assert (lake.home / "snapshots" / f"usage_day={DAY}" / "usage.parquet").exists()


def test_a_single_value_of_a_wrong_type_is_a_bad_row_not_a_bad_file(lake: Lake) -> None:
    lake.jsonl(
        row(),
        row(sensor_id=1.5),
        row(organization_id={"name": "a"}),
        row(recorded_at=1773144000),
        ["not", "an", "object"],
        row(organization_id="nul\u0000"),
        row(organization_id="x" * 256),
    )
    lake.csv(HEADER + "a,s,garbage,1\n")
    at = pa.array([MIDNIGHT] * 2, pa.timestamp("us"))
    nameless = {"organization_id": pa.nulls(2), "sensor_id": ["s", "t"], "recorded_at": at}
    lake.parquet(pa.table(nameless))
    assert lake.count().quarantined == {
        "organization_id_invalid": 3,
        "organization_id_missing": 3,
        "recorded_at_invalid": 2,
        "sensor_id_invalid": 1,
    }
    assert lake.usage() == {"a": (1, 1)}


def in_jsonl(lake: Lake, *rows: dict[str, Any]) -> None:
    lake.jsonl(*rows)


def in_parquet(lake: Lake, *rows: dict[str, Any]) -> None:
    at = pa.array([MIDNIGHT] * len(rows), pa.timestamp("us"))
    columns = {name: [row[name] for row in rows] for name in ("organization_id", "sensor_id")}
    lake.parquet(pa.table({**columns, "recorded_at": at, "value": [row["value"] for row in rows]}))


@pytest.mark.parametrize("write", [in_jsonl, in_parquet])
@pytest.mark.parametrize("letter", ["x", "é", "🐍"])
def test_ids_longer_than_255_characters_are_quarantined(
    lake: Lake, write: Callable[..., None], letter: str
) -> None:
    longest, too_long = letter * 255, letter * 256
    write(
        lake,
        row(organization_id=longest, sensor_id=longest),
        row(organization_id=too_long),
        row(sensor_id=too_long),
    )
    assert lake.count().quarantined == {"organization_id_invalid": 1, "sensor_id_invalid": 1}
    assert lake.usage() == {longest: (1, 1)}


@pytest.mark.parametrize("write", [in_jsonl, in_parquet])
def test_only_valid_rows_are_listed_as_duplicates_and_counted_in_segments(
    lake: Lake, write: Callable[..., None]
) -> None:
    sensors = ["s", "", " \u3000", None, "nul\0", "x" * 256]
    write(lake, *(row(sensor_id=sensor, value=n) for sensor in sensors for n in (1, 2)))
    counted = lake.count()
    assert (counted.readings, counted.duplicates, counted.quarantined_rows) == (1, 1, 10)
    listed = duplicates_of(lake.engine, lake.readings, DAY, "a")
    assert [(each["sensor_id"], each["rows"]) for each in listed] == [("s", 2)]
    day = {"a": [(0, 86_400)]}
    found = usage_in_segments(lake.engine, lake.readings, lake.snapshots, DAY, day)
    assert found == {"a": [lake.usage()["a"]]}


def test_a_missing_root_is_not_a_day_without_readings(lake: Lake) -> None:
    lake.jsonl(row())
    before = lake.snapshot()
    (lake.home / "readings").rename(lake.home / "elsewhere")
    with pytest.raises(UnusableInput, match="BILLING_READINGS_URI"):
        lake.snapshot()
    assert load_snapshot(ENGINE, lake.snapshots, DAY) == before


def test_files_of_other_kinds_are_named_not_read(lake: Lake) -> None:
    lake.jsonl(row())
    (lake.folder() / "nested").mkdir()
    (lake.folder() / "more.csv.gz").write_bytes(b"...")
    (lake.folder() / ".tmp.parquet").write_bytes(b"half")
    assert lake.count().ignored_files == ("more.csv.gz", "nested/")


# Unusable input --------------------------------------------------------------------------------


def truncated_parquet(lake: Lake) -> None:
    path = lake.parquet(pa.table({"organization_id": ["a"], "sensor_id": ["s"]}), "bad.parquet")
    path.write_bytes(path.read_bytes()[:-20])


def damaged_parquet(lake: Lake) -> None:
    table = pa.table(
        {
            "organization_id": ["a"] * 5000,
            "sensor_id": [f"s{n}" for n in range(5000)],
            "recorded_at": pa.array([MIDNIGHT] * 5000, pa.timestamp("us")),
        }
    )
    path = lake.parquet(table, "bad.parquet")
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)


def parquet_with(**columns: Any) -> Callable[[Lake], None]:
    good = {
        "organization_id": pa.array(["a", "a"]),
        "sensor_id": pa.array(["s", "t"]),
        "recorded_at": pa.array([MIDNIGHT] * 2, pa.timestamp("us")),
    }
    kept = {name: column for name, column in {**good, **columns}.items() if column is not None}

    def write(lake: Lake) -> None:
        lake.parquet(pa.table(kept), "bad.parquet")

    return write


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (truncated_parquet, ["bad.parquet"]),
        (damaged_parquet, ["bad.parquet"]),
        (parquet_with(sensor_id=None), ["bad.parquet", "sensor_id"]),
        (parquet_with(organization_id=pa.array([1.0, 2.0])), ["bad.parquet", "organization_id"]),
        (parquet_with(recorded_at=pa.array([1_700_000_000] * 2)), ["bad.parquet", "recorded_at"]),
        (parquet_with(recorded_at=pa.array(["soon", "later"])), ["bad.parquet", "recorded_at"]),
        (lambda lake: lake.csv("", "bad.csv"), ["bad.csv", "empty"]),
        (lambda lake: lake.csv("organization_id,sensor_id\na,s\n", "bad.csv"), ["recorded_at"]),
        (lambda lake: lake.csv(HEADER + "a,s,2026-03-10T12:00", "bad.csv"), ["bad.csv"]),
        (lambda lake: lake.csv(HEADER + "a,s,1773144000,1\n" * 2, "bad.csv"), ["recorded_at"]),
        (lambda lake: lake.csv(HEADER + "a,s,2026-03-10T12:00:00,1,5\n", "bad.csv"), ["bad.csv"]),
        (lambda lake: lake.csv(HEADER.replace("value", "sensor_id"), "bad.csv"), ["twice"]),
        (lambda lake: lake.jsonl([1, 2], name="bad.jsonl"), ["bad.jsonl"]),
        (
            lambda lake: lake.jsonl(row(sensor_id=1.5), row(sensor_id=True), name="bad.jsonl"),
            ["sensor_id"],
        ),
        (
            lambda lake: lake.jsonl(*[row(recorded_at=1773144000)] * 2, name="bad.jsonl"),
            ["recorded_at"],
        ),
        (lambda lake: lake.jsonl({"organization_id": "a"}, name="bad.jsonl"), ["sensor_id"]),
        (lambda lake: lake.csv('{"organization_id": "a", "sen', "bad.jsonl"), ["bad.jsonl"]),
    ],
)
def test_an_unusable_file_fails_its_day_by_name_and_the_old_snapshot_stands(
    lake: Lake, spoil: Callable[[Lake], Any], named: list[str]
) -> None:
    lake.jsonl(row())
    before = lake.snapshot()
    spoil(lake)
    with pytest.raises(UnusableInput) as failure:
        lake.snapshot()
    for word in ["reading_date=2026-03-10", *named]:
        assert word in str(failure.value)
    assert load_snapshot(ENGINE, lake.snapshots, DAY) == before


def test_a_csv_row_with_too_many_fields_is_not_lost_silently(lake: Lake) -> None:
    # A guessed dialect would skip such lines; a fixed one refuses the file.
    lake.csv(HEADER + "a,s,2026-03-10T12:00:00,1\n" + "a,s,2026-03-10T12:00:01,1,surplus\n")
    with pytest.raises(UnusableInput):
        lake.count()


# Snapshots -------------------------------------------------------------------------------------


def test_the_snapshot_file_has_the_columns_of_the_contract(lake: Lake) -> None:
    lake.jsonl(row(), row(value=2), row(sensor_id="t"))
    snapshot = lake.snapshot()
    path = lake.home / "snapshots" / f"usage_day={DAY}"
    frame = pd.read_parquet(path / "usage.parquet")
    assert list(frame.columns) == [
        "usage_day",
        "organization_id",
        "active_sensors",
        "reading_volume",
        "exact_duplicates",
        "conflicting_duplicates",
        "snapshot_id",
    ]
    assert frame.iloc[0, 1:].tolist() == ["a", 2, 2, 0, 1, snapshot.snapshot_id]
    assert str(frame["active_sensors"].dtype) == str(frame["reading_volume"].dtype) == "int64"
    inputs = json.loads((path / "inputs.json").read_text())
    assert inputs["snapshot_id"] == snapshot.snapshot_id
    assert [(f["name"], f["rows"]) for f in inputs["files"]] == [("a.jsonl", 3)]


def test_the_same_inputs_give_the_same_snapshot_id_and_others_another(lake: Lake) -> None:
    path = lake.jsonl(row())
    first = lake.snapshot().snapshot_id
    os.utime(path, (0, 0))
    assert lake.snapshot().snapshot_id == first
    lake.jsonl(row(value=2))
    assert lake.snapshot().snapshot_id != first


def test_a_snapshot_knows_when_its_files_have_changed(lake: Lake) -> None:
    def current() -> bool:
        return is_current(lake.readings, lake.snapshots, DAY)

    assert not current()
    lake.jsonl(row())
    lake.snapshot()
    assert current()
    late = lake.csv(HEADER + "a,late,2026-03-10T12:00:00,1\n")
    assert not current()
    lake.snapshot()
    assert current()
    late.unlink()
    assert not current()


def test_a_crash_while_a_snapshot_is_written_leaves_the_day_to_be_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path, ENGINE)
    folder = tmp_path / "snapshots" / f"usage_day={DAY}"
    lake.jsonl(row())
    lake.snapshot()
    lake.jsonl(row(), row(sensor_id="t"))
    replaced: list[str] = []
    real = Folder.replacing

    def crashing(self: Folder, *parts: str) -> Any:
        replaced.append(parts[-1])
        if len(replaced) == 3:  # activity, inputs, snapshot
            raise RuntimeError("killed")
        return real(self, *parts)

    monkeypatch.setattr(Folder, "replacing", crashing)
    with pytest.raises(RuntimeError, match="killed"):
        lake.snapshot()
    assert not is_current(lake.readings, lake.snapshots, DAY)
    monkeypatch.undo()
    id = lake.snapshot().snapshot_id
    assert json.loads((folder / "inputs.json").read_text())["snapshot_id"] == id


@pytest.mark.parametrize("file", ["usage.parquet", "sensor_activity.parquet"])
def test_damage_fails_its_day_and_is_never_another_count(tmp_path: Path, file: str) -> None:
    lake = Lake(tmp_path, ENGINE)
    lake.jsonl(*(row(organization_id=f"o{n}", sensor_id=f"s{n}") for n in range(20)))
    snapshot = lake.snapshot()
    path = tmp_path / "snapshots" / f"usage_day={DAY}" / file
    sound = path.read_bytes()
    chance = random.Random(5)
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[chance.randrange(len(sound))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            is_current(lake.readings, lake.snapshots, DAY)
            found = load_snapshot(ENGINE, lake.snapshots, DAY)
            assert found is None or found.organizations == snapshot.organizations
        except DAY_ERRORS:
            pass


def test_a_corrected_day_replaces_the_old_one_down_to_nothing(lake: Lake) -> None:
    path = lake.jsonl(row(), row(sensor_id="t"))
    assert lake.usage() == {"a": (2, 2)}
    path.unlink()
    assert lake.usage() == {}
    snapshot = load_snapshot(ENGINE, lake.snapshots, DAY)
    assert snapshot is not None
    assert snapshot.organizations == ()


# The window ------------------------------------------------------------------------------------


def test_a_window_counts_the_sensors_of_earlier_days_once(lake: Lake) -> None:
    for n, sensors in enumerate(["s t", "s", "u"]):
        day = date(2026, 3, 8 + n)
        lines = "".join(f"a,{s},{day}T12:00:00,1\n" for s in sensors.split())
        lake.csv(HEADER + lines, day=day)
    lake.csv(HEADER + "gone,x,2026-03-08T12:00:00,1\n", "b.csv", date(2026, 3, 8))
    assert lake.usage(window_days=1) == {"a": (1, 1)}
    assert lake.usage(window_days=2) == {"a": (2, 1)}
    assert lake.usage(window_days=3) == {"a": (3, 1), "gone": (1, 0)}


def test_a_window_works_from_kept_activity_without_the_earlier_readings(lake: Lake) -> None:
    before = date(2026, 3, 9)
    lake.csv(HEADER + "a,s,2026-03-09T12:00:00,1\n", day=before)
    lake.csv(HEADER + "a,t,2026-03-10T12:00:00,1\n")
    kept = lake.count(before)
    activity = lake.home / "snapshots" / f"usage_day={before}" / "sensor_activity.parquet"
    stamp = activity.stat().st_mtime_ns
    assert lake.usage(window_days=2) == {"a": (2, 1)}
    assert activity.stat().st_mtime_ns == stamp
    assert activity_for(ENGINE, lake.readings, lake.snapshots, before) == kept


def test_late_readings_of_an_earlier_day_reach_the_window(lake: Lake) -> None:
    before = date(2026, 3, 9)
    lake.csv(HEADER + "a,t,2026-03-10T12:00:00,1\n")
    assert lake.usage(window_days=2) == {"a": (1, 1)}
    lake.csv(HEADER + "a,late,2026-03-09T12:00:00,1\n", day=before)
    assert not is_current(lake.readings, lake.snapshots, DAY, window_days=2)
    assert lake.usage(window_days=2) == {"a": (2, 1)}


# Activity --------------------------------------------------------------------------------------


def test_sensor_activity_has_counts_and_first_and_last_time(lake: Lake) -> None:
    lake.jsonl(row(), row(recorded_at="2026-03-10T23:59:59.999999Z"), row(value=9))
    lake.count()
    assert sensors_of(ENGINE, lake.snapshots, DAY, "a") == [
        {
            "sensor_id": "s",
            "readings": 2,
            "first_at": "2026-03-10 12:00:00",
            "last_at": "2026-03-10 23:59:59.999999",
            "exact_duplicates": 0,
            "conflicting_duplicates": 1,
        }
    ]


def test_readings_are_read_through_any_fsspec_uri() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open(f"/lake/reading_date={DAY}/a.csv", "wb") as file:
        file.write((HEADER + "a,s,2026-03-10T12:00:00,1\n").encode())
    readings, snapshots = Folder("memory://lake"), Folder("memory://kept")
    snapshot = take_snapshot(ENGINE, readings, snapshots, DAY)
    assert [(o.organization_id, o.reading_volume) for o in snapshot.organizations] == [("a", 1)]
    assert load_snapshot(ENGINE, snapshots, DAY) == snapshot
    assert is_current(readings, snapshots, DAY)


def test_memory_is_bounded_and_spills(lake: Lake) -> None:
    path = lake.folder() / "large.parquet"
    with duckdb.connect() as connection:
        connection.sql(
            "SELECT 'organization-' || (i % 50) AS organization_id, 'sensor-' || (i % 20000) AS "
            "sensor_id, TIMESTAMP '2026-03-10' + to_milliseconds(i * 40) AS recorded_at "
            "FROM range(2000000) t(i)"
        ).write_parquet(str(path))
    small = count_day(Engine("150MB"), lake.readings, lake.snapshots, DAY)
    assert (small.readings, small.sensors) == (2_000_000, 20_000)
