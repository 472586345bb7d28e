"""Counting against a reckoning in plain Python, on arbitrary messy days."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.snapshot import take_snapshot
from billing_pipeline.usage.sources.folders import Folder

DAY = date(2026, 3, 10)
MIDNIGHT = datetime(2026, 3, 10, tzinfo=UTC)

ids = st.sampled_from(["a", "b", "é", "7", "", "  ", None])
offsets = st.integers(-2, 3) | st.sampled_from([-1, 86_399, 86_400])
rows = st.lists(
    st.fixed_dictionaries(
        {
            "organization_id": ids,
            "sensor_id": ids,
            "second": offsets | st.none(),
            "value": st.integers(0, 2) | st.none(),
        }
    ),
    max_size=30,
)


def reckon(day: list[dict[str, Any]]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """By hand: usage by organization, and what became of the rows."""
    values: dict[tuple[str, str, int], list[Any]] = defaultdict(list)
    fates: dict[str, int] = defaultdict(int)
    for r in day:
        named = (r["organization_id"] or "").strip() and (r["sensor_id"] or "").strip()
        if not named or r["second"] is None or not 0 <= r["second"] < 86_400:
            fates["quarantined"] += 1
        else:
            values[r["organization_id"], r["sensor_id"], r["second"]].append(r["value"])
    for same in values.values():
        fates["readings"] += 1
        fates["conflicting"] += len(set(same)) - 1
        fates["exact"] += len(same) - len(set(same))
    usage = {}
    for organization in {key[0] for key in values}:
        mine = [key for key in values if key[0] == organization]
        usage[organization] = (len({sensor for _, sensor, _ in mine}), len(mine))
    return usage, fates


def written(r: dict[str, Any]) -> dict[str, Any]:
    at = None if r["second"] is None else MIDNIGHT + timedelta(seconds=r["second"])
    return {
        "organization_id": r["organization_id"],
        "sensor_id": r["sensor_id"],
        "recorded_at": at,
        "value": r["value"],
    }


@settings(max_examples=80, deadline=None)
@given(parquet=rows, lines=rows)
def test_counts_equal_a_count_by_hand(
    parquet: list[dict[str, Any]], lines: list[dict[str, Any]]
) -> None:
    with TemporaryDirectory() as home:
        folder = Path(home) / "readings" / f"reading_date={DAY}"
        folder.mkdir(parents=True)
        frame = pd.DataFrame(
            [written(r) for r in parquet],
            columns=["organization_id", "sensor_id", "recorded_at", "value"],
        )
        frame = frame.astype({"organization_id": "str", "sensor_id": "str", "value": "Int64"})
        frame["recorded_at"] = pd.to_datetime(frame["recorded_at"], utc=True)
        frame.to_parquet(folder / "a.parquet")
        good = {"organization_id": "z", "sensor_id": "z", "second": 1, "value": None}
        with (folder / "b.jsonl").open("w") as file:
            for r in [good, *lines]:  # one good line, so that the columns are there
                out = written(r)
                out["recorded_at"] = out["recorded_at"].isoformat() if out["recorded_at"] else None
                file.write(json.dumps(out) + "\n")
        snapshot = take_snapshot(
            Engine("512MB"), Folder(f"{home}/readings"), Folder(f"{home}/snapshots"), DAY
        )
    usage, fates = reckon([*parquet, good, *lines])
    counted = snapshot.counted
    assert {
        o.organization_id: (o.active_sensors, o.reading_volume) for o in snapshot.organizations
    } == usage
    assert counted.rows_read == len(parquet) + len(lines) + 1
    assert counted.readings == fates["readings"]
    assert counted.exact_duplicates == fates["exact"]
    assert counted.conflicting_duplicates == fates["conflicting"]
    assert counted.quarantined_rows == fates["quarantined"]
