"""Days of Parquet for every way of counting: arbitrary ones, and days built to hurt."""

from __future__ import annotations

import decimal
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from billing_pipeline.usage.activity import CountedDay, count_day
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.sources.folders import Folder

DAY = date(2026, 3, 10)
MIDNIGHT_S = int(datetime(2026, 3, 10, tzinfo=UTC).timestamp())
DAY_S = 86_400
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

Rows = list[tuple[Any, ...]]


class Lake:
    """A folder of readings that both ways count."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "readings" / f"reading_date={DAY}"
        self.folder.mkdir(parents=True)

    def write(self, table: pa.Table, name: str = "a", **options: Any) -> None:
        pq.write_table(table, self.folder / f"{name}.parquet", **options)

    def count(self, engine: Engine) -> tuple[CountedDay, Rows]:
        """The counts, and the sensor activity row by row with the types of its columns."""
        kept = self.home / engine.memory_limit / str(engine.kernel) / str(engine.spark is None)
        counted = count_day(engine, Folder(str(self.home / "readings")), Folder(str(kept)), DAY)
        with duckdb.connect() as connection:
            activity = connection.sql(
                f"FROM read_parquet('{kept}/*/sensor_activity.parquet', hive_partitioning = false)"
            )
            types: Rows = [tuple(activity.columns), tuple(map(str, activity.types))]
            return counted, types + activity.fetchall()

    def same(self, engine: Engine) -> CountedDay:
        """Count with this engine and with SQL alone; they must not differ in anything."""
        counted, rows = self.count(engine)
        by_sql, sql_rows = self.count(Engine("1GB", kernel=False))
        assert by_sql.method == "sql: the kernel is switched off"
        assert replace(counted, method=by_sql.method) == by_sql
        assert rows == sql_rows
        return counted


def times(seconds: Sequence[float | None], unit: str = "us", zone: str | None = None) -> pa.Array:
    """Instants by seconds since the day began."""
    ticks = [
        None if s is None else MIDNIGHT_S * PER_SECOND[unit] + math.floor(s * PER_SECOND[unit])
        for s in seconds
    ]
    return pa.array(ticks, pa.int64()).cast(pa.timestamp(unit, zone))


def table(
    organizations: Any, sensors: Any, seconds: Sequence[float | None], value: Any = None
) -> pa.Table:
    columns = {
        "organization_id": organizations,
        "sensor_id": sensors,
        "recorded_at": times(seconds),
    }
    return pa.table(columns if value is None else {**columns, "value": value})


# Arbitrary days --------------------------------------------------------------------------------

IDS = [
    "a", "b", "é", "7", "07", "-1", "", " \u3000", "\u0085", "a\0", "\0", "x" * 8, "x" * 9,
    "x" * 16, "x" * 255, "x" * 256, "x" * 255 + "y", "é" * 128, "日本", " a",
    "00000000-0000-0000-0000-000000000007", None,
]  # fmt: skip
NUMBERS = [7, -1, 0, 8, None]
SECONDS = [0, 1, 1, 2, 0.000001, 0.000002, 86_399, 86_399.999999, 86_400, -1, -0.000001, None, 7e9]
VALUES: list[tuple[Any, list[Any]]] = [
    (pa.float64(), [1.0, 1.5, 0.0, -0.0, math.nan, math.inf, None]),
    (pa.float32(), [1.0, 1.5, 21.1, -0.0, math.nan, None]),
    (pa.int64(), [1, 2, -(2**53) - 1, -(2**53), None]),
    (pa.uint8(), [1, 2, 255, None]),
    (pa.decimal128(9, 2), [decimal.Decimal("1.00"), decimal.Decimal("1.50"), None]),
    (pa.string(), ["1", "1.0", "on", "", None]),
    (pa.dictionary(pa.int32(), pa.string()), ["1", "on", None]),
    (pa.bool_(), [True, False, None]),
    (None, [None]),
]


def id_column(draw: st.DrawFn, rows: int) -> pa.Array:
    kind = draw(st.sampled_from(["string", "large", "dictionary", "integer", "small", "uuid"]))
    if kind in ("integer", "small"):
        drawn = draw(st.lists(st.sampled_from(NUMBERS), min_size=rows, max_size=rows))
        return pa.array(drawn, pa.int64() if kind == "integer" else pa.int8())
    if kind == "uuid":
        drawn = draw(st.lists(st.sampled_from([7, 8, None]), min_size=rows, max_size=rows))
        return pa.array([None if n is None else uuid.UUID(int=n).bytes for n in drawn], pa.uuid())
    some = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=6))  # often of one length
    drawn = draw(st.lists(st.sampled_from(some), min_size=rows, max_size=rows))
    texts = pa.array(drawn, pa.large_string() if kind == "large" else pa.string())
    return texts.dictionary_encode() if kind == "dictionary" else texts


@st.composite
def files(draw: st.DrawFn) -> tuple[pa.Table, dict[str, Any]]:
    rows = draw(st.integers(0, 14))
    unit = draw(st.sampled_from(["s", "ms", "us", "us", "ns"]))
    zone = draw(st.sampled_from([None, "UTC", "Asia/Kathmandu"]))
    seconds = draw(st.lists(st.sampled_from(SECONDS), min_size=rows, max_size=rows))
    at = times(seconds, unit, zone)
    if unit == "ns" and draw(st.booleans()):
        nudged = [None if t is None else t + n % 2 for n, t in enumerate(at.cast("int64").tolist())]
        at = pa.array(nudged, pa.int64()).cast(at.type)
    kind, values = draw(st.sampled_from(VALUES))
    columns = {
        "organization_id": id_column(draw, rows),
        "sensor_id": id_column(draw, rows),
        "recorded_at": at,
    }
    if kind is not None:
        drawn = draw(st.lists(st.sampled_from(values), min_size=rows, max_size=rows))
        if pa.types.is_dictionary(kind):
            columns["value"] = pa.array(drawn, kind.value_type).dictionary_encode()
        else:
            columns["value"] = pa.array(drawn, kind)
    names = draw(st.permutations(list(columns)))
    options = {
        "row_group_size": draw(st.integers(1, 8)),
        "use_dictionary": draw(st.booleans()),
        "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
    }
    return pa.table({name: columns[name] for name in names}), options


# Days built to hurt ----------------------------------------------------------------------------

N = 12_000


def everything_twice(lake: Lake) -> None:
    day = table(["a"] * N, [f"s{n % 50}" for n in range(N)], range(N), [n * 0.5 for n in range(N)])
    lake.write(day, "a", row_group_size=1_000)
    lake.write(day, "b", row_group_size=777)


def everything_twice_with_other_values(lake: Lake) -> None:
    ids = [f"s{n % 50}" for n in range(N)]
    lake.write(table(["a"] * N, ids, range(N), list(range(N))), "a")
    lake.write(table(["a"] * N, ids, range(N), [n + n % 2 for n in range(N)]), "b")
    lake.write(table(["a"] * N, ids, range(N), [str(n) for n in range(N)]), "c")


def everything_twice_without_values(lake: Lake) -> None:
    for name in "ab":
        lake.write(table(["a"] * N, [n % 50 for n in range(N)], range(N)), name)


def one_sensor_at_neighbouring_microseconds(lake: Lake) -> None:
    lake.write(table(["a"] * N, ["s"] * N, [n / 10**6 for n in range(N)]), row_group_size=999)


def neighbours_that_share_an_instant_after_rounding(lake: Lake) -> None:
    at = pa.array([MIDNIGHT_S * 10**9 + n // 2 for n in range(N)]).cast(pa.timestamp("ns"))
    lake.write(table(["a"] * N, ["s"] * N, range(N)).set_column(2, "recorded_at", at))
    lake.write(table(["a"] * 9, ["s"] * 9, [n / 10**6 for n in range(9)]), "b")


def one_reading_many_times(lake: Lake) -> None:
    lake.write(table(["a"] * N, ["s"] * N, [1] * N, [n % 3 for n in range(N)]))


def a_sensor_for_every_row(lake: Lake) -> None:
    sensors = [f"sensor-{n:09}" if n % 3 else f"{n}" for n in range(N)]
    lake.write(table([f"o{n % 900}" for n in range(N)], sensors, [1] * N), row_group_size=1_500)


def a_huge_dictionary(lake: Lake) -> None:
    values = pa.array([f"{n}-of-a-huge-dictionary" for n in range(3 * N)])
    ids = pa.DictionaryArray.from_arrays(pa.array([n * 3 for n in range(N)], pa.int32()), values)
    lake.write(table(ids, ids, range(N)), row_group_size=500)


def many_small_files(lake: Lake) -> None:
    for n in range(150):
        lake.write(table(["a", "b"], [n % 7, n % 5], [n % 11, n % 13], [n, n]), f"file-{n:03}")


def empty_row_groups_and_files(lake: Lake) -> None:
    day = table(["a"] * 9, ["s"] * 9, range(9), [1.0] * 9)
    with pq.ParquetWriter(lake.folder / "a.parquet", day.schema) as writer:
        for part in (day.slice(0, 0), day.slice(0, 5), day.slice(5, 0), day.slice(3, 6)):
            writer.write_table(part)
    lake.write(day.slice(0, 0), "b")


def only_odd_rows(lake: Lake) -> None:
    lake.write(table([None, " ", "a", "a"] * 900, ["s", "s", "\0", "s"] * 900, [None] * 3_600))


def a_tenth_of_odd_rows(lake: Lake) -> None:
    seconds = [n if n % 10 else DAY_S + n for n in range(N)]
    sensors = [f"s{n % 90}" if n % 7 else "" for n in range(N)]
    lake.write(table(["a"] * N, sensors, seconds, [1.5] * N), row_group_size=1_000)


def borders_of_the_day(lake: Lake) -> None:
    edge = [-1, -0.000001, 0, 0.000001, DAY_S - 0.000001, DAY_S, 9e9, -6e9]
    lake.write(table(["a"] * 8, ["s"] * 8, edge), "a")
    for unit in ("s", "ms", "ns"):
        whole = table(["a"] * 4, ["s"] * 4, range(4))
        at = times([-1, 0, DAY_S - 1, DAY_S], unit, "America/New_York")
        lake.write(whole.set_column(2, "recorded_at", at), unit)
    ends = pa.array([-(2**63) + 1, 2**63 - 1, -(2**62), 0]).cast(pa.timestamp("us"))
    lake.write(whole.set_column(2, "recorded_at", ends), "ends")


HURTING: list[Callable[[Lake], None]] = [
    everything_twice,
    everything_twice_with_other_values,
    everything_twice_without_values,
    one_sensor_at_neighbouring_microseconds,
    neighbours_that_share_an_instant_after_rounding,
    one_reading_many_times,
    a_sensor_for_every_row,
    a_huge_dictionary,
    many_small_files,
    empty_row_groups_and_files,
    only_odd_rows,
    a_tenth_of_odd_rows,
    borders_of_the_day,
]
