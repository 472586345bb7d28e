"""The kernel against SQL: every output of both, on messy days and on days built to hurt.

Sizes are tiny here, so that small days have several shares, batches, buckets and threads, and
spill; hashes are weak, so that everything collides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline.errors import UnusableInput
from billing_pipeline.usage.activity import CountedDay, count_day
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.kernel import kernel as kernel_module
from billing_pipeline.usage.kernel.grouping import (
    CodeTable,
    TooManyCodes,
    Words,
    mixed,
    representatives,
)
from billing_pipeline.usage.kernel.identity import as_text, identities
from billing_pipeline.usage.kernel.limits import Limits, in_bytes
from billing_pipeline.usage.sources.folders import Folder
from tests.usage.days import (
    DAY,
    HURTING,
    IDS,
    Lake,
    N,
    a_sensor_for_every_row,
    everything_twice,
    everything_twice_with_other_values,
    files,
    one_reading_many_times,
    table,
)

TINY = Limits(
    threads=2, batch_rows=3, chunk_rows=5, bucket_rows=2, most_bucket_rows=10**6, kept_bytes=100
)
SMALL = replace(TINY, batch_rows=700, chunk_rows=2_000, bucket_rows=500, kept_bytes=20_000)


def kernel(limits: Limits | None = TINY) -> Engine:
    return Engine("1GB", limits=limits)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


# Arbitrary days, and days built to hurt -----------------------------------------------------------


def weak(words: Sequence[Words]) -> Words:
    """Four different hashes in all."""
    return mixed(words) & np.uint64(3 << 62)


@settings(max_examples=150, deadline=None)
@given(day=st.lists(files(), max_size=4), hashed=st.sampled_from([mixed, weak]))
def test_the_kernel_and_sql_agree_on_any_day(
    day: list[tuple[pa.Table, dict[str, Any]]], hashed: Any
) -> None:
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_module.count_plain, "__defaults__", (hashed,))
        lake = Lake(Path(home))
        for n, (rows, options) in enumerate(day):
            lake.write(rows, f"file-{n}", **options)
        assert lake.same(kernel()).method == "kernel"


@pytest.mark.parametrize("limits", [SMALL, None], ids=["spilling", "in memory"])
@pytest.mark.parametrize("build", HURTING)
def test_the_kernel_and_sql_agree_on_days_built_to_hurt(
    lake: Lake, build: Callable[[Lake], None], limits: Limits | None
) -> None:
    build(lake)
    counted = lake.same(kernel(limits))
    assert counted.method == "kernel"
    assert counted.conserved


def test_spilling_leaves_nothing_behind(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spill))
    everything_twice_with_other_values(lake)
    assert lake.same(kernel(SMALL)).method == "kernel"
    assert list(spill.iterdir()) == []


def test_equal_duplicates_are_counted_without_sql(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Any] = []
    real = kernel_module.count_plain

    def count_plain(*given: Any) -> Any:
        counts = real(*given)
        left.extend([*counts.odd, *counts.unlike])
        return counts

    monkeypatch.setattr("billing_pipeline.usage.activity.count_plain", count_plain)
    everything_twice(lake)
    assert lake.same(kernel(SMALL)).exact_duplicates == N
    assert left == []


def test_readings_come_through_any_fsspec_uri() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open(f"/kernel/reading_date={DAY}/a.parquet", "wb") as file:
        pq.write_table(table(["a"] * 9, ["s"] * 9, range(9), [1] * 9), file)
    counted = count_day(Engine("512MB"), Folder("memory://kernel"), Folder("memory://kept"), DAY)
    assert (counted.method, counted.readings) == ("kernel", 9)


# Days left to SQL --------------------------------------------------------------------------------


def two_value_columns(lake: Lake) -> None:
    day = table(["a"], ["s"], [1], [1])
    lake.write(day.append_column("VALUE", pa.array([2])))


@pytest.mark.parametrize(
    ("build", "limits", "method"),
    [
        (a_sensor_for_every_row, replace(SMALL, most_sensors=N - 1), "more sensors"),
        (one_reading_many_times, replace(SMALL, most_bucket_rows=N - 1), "too many rows"),
        (two_value_columns, TINY, "the column value twice"),
        (lambda lake: lake.write(table(pa.nulls(1), ["s"], [1])), TINY, "organization_id is null"),
        (
            lambda lake: lake.write(table(["a"], ["s"], [1], pa.array([{"x": 1}]))),
            TINY,
            "value is struct",
        ),
        (
            lambda lake: lake.write(table(["a"], ["s"], [1]), use_deprecated_int96_timestamps=True),
            TINY,
            "recorded_at is timestamp",
        ),
    ],
)
def test_sql_counts_a_day_that_the_kernel_cannot_and_the_method_says_why(
    lake: Lake, build: Callable[[Lake], None], limits: Limits, method: str
) -> None:
    build(lake)
    counted = lake.same(kernel(limits))
    assert counted.method.startswith("sql: ")
    assert method in counted.method


def test_a_file_of_another_format_leaves_the_day_to_sql_by_name(lake: Lake) -> None:
    lake.write(table(["a"], ["s"], [1]))
    (lake.folder / "b.csv").write_text(
        "organization_id,sensor_id,recorded_at\na,s,2026-03-10T12:00:00Z\n"
    )
    assert lake.same(kernel()).method == "sql: b.csv is not Parquet"


def test_a_hash_that_is_the_same_for_all_rows_is_noticed(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        kernel_module.count_plain, "__defaults__", (lambda words: np.zeros_like(words[0]),)
    )
    a_sensor_for_every_row(lake)
    assert "hashes" in lake.same(kernel(SMALL)).method


def test_an_id_that_is_not_text_is_reported_as_sql_does(lake: Lake) -> None:
    broken = pa.array([b"\xff\xfe"]).view(pa.string())
    lake.write(table(["a"], broken, [1]), "broken", store_schema=False)
    with pytest.raises(UnusableInput, match=r"broken\.parquet"):
        lake.count(Engine("1GB", kernel=False))
    with pytest.raises(UnusableInput, match=r"broken\.parquet"):
        lake.count(Engine("1GB"))


def test_activity_without_a_method_was_counted_by_sql(lake: Lake) -> None:
    lake.write(table(["a"], ["s"], [1]))
    document = lake.same(kernel()).as_json()
    del document["method"]
    assert CountedDay.from_json(document).method == "sql"


# Helpers ----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(IDS[:-1]), max_size=40), st.integers(0, 5), st.booleans())
def test_ids_are_equal_as_words_just_if_they_are_equal_as_text(
    ids: list[str], start: int, large: bool
) -> None:
    short = [each for each in ids if len(each.encode()) <= 255]
    texts = pa.array(short, pa.large_string() if large else pa.string()).slice(start)
    words = identities(as_text(texts))
    columns = [words.lengths, *words.words]
    keys = [tuple(int(column[row]) for column in columns) for row in range(len(texts))]
    padded = [each.encode().ljust(8 * len(words.words), b"\0") for each in texts.to_pylist()]
    assert keys == [
        (len(each.encode()), *np.frombuffer(row, "<u8").tolist())
        for each, row in zip(texts.to_pylist(), padded, strict=True)
    ]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 3))
def test_equal_rows_agree_on_one_of_them(values: list[int], bits: int) -> None:
    keys = np.array(values, np.uint64)
    hashes = (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits) if bits else keys
    chosen = representatives(hashes, lambda left, right: keys[left] == keys[right])
    assert keys[chosen].tolist() == values
    assert len(set(chosen.tolist())) == len(set(values))


@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=8), st.booleans())
def test_a_code_table_gives_each_identity_one_code(chunks: list[list[int]], strong: bool) -> None:
    codes = CodeTable(1000, mixed if strong else weak, capacity=2)
    known: dict[int, int] = {}
    for width, chunk in enumerate(chunks, 1):
        words = [np.array(chunk, np.uint64), *[np.zeros(len(chunk), np.uint64)] * width]
        found = codes.codes(words, lambda rows: (pa.array(rows), np.zeros(len(rows), np.bool_)))
        for value, code in zip(chunk, found.tolist(), strict=True):
            assert known.setdefault(value, code) == code
    assert sorted(known.values()) == list(range(1, len(known) + 1))


def test_a_code_table_has_an_end() -> None:
    codes = CodeTable(3)
    with pytest.raises(TooManyCodes):
        codes.codes(
            [np.arange(4, dtype=np.uint64)],
            lambda rows: (pa.array(rows), np.zeros(len(rows), np.bool_)),
        )


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mb", 512 * 10**6), ("1TB", 10**12)],
)
def test_memory_limits_are_sizes(text: str, size: int) -> None:
    assert in_bytes(text) == size
