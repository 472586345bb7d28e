"""A usage snapshot, from readings to the finished file, compared with a bare scan of its columns.

The scan reads every value with the same engine and memory limit and keeps nothing; counting with
DuckDB cannot be faster. Each measurement has its own process, and therefore its own peak memory.
All kinds alternate, so that a busy minute of the machine affects all of them. CPU seconds include
the start of Python and do not depend on other work on the machine.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.data import DAY, GeneratedDay, generate
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.snapshot import take_snapshot
from billing_pipeline.usage.sources.folders import Folder

MANY = 50_000_000
"""With this many readings or more, one repetition instead of three."""

FEW = 1_000_000
"""With fewer readings Spark is not measured: nearly all of its time would be its start."""


def measure_counting(home: Path, readings: int, memory_limit: str) -> dict[str, Any]:
    """One row of the table; keys are its columns."""
    _in_new_process("generate", home, readings, memory_limit)
    results: dict[str, list[dict[str, float]]] = {"scan": [], "kernel": [], "sql": []}
    results |= {other: [] for other in others(readings)}
    repetitions = 1 if readings >= MANY else 3
    for _ in range(repetitions):
        for kind, measured in results.items():
            measured.append(_in_new_process(kind, home, readings, memory_limit))
    row: dict[str, Any] = {
        "readings": readings,
        "memory limit": memory_limit,
        "repetitions": repetitions,
    }
    seconds = {}
    for kind, measured in results.items():
        seconds[kind] = median(each["seconds"] for each in measured)
        row[f"{kind} s"] = round(seconds[kind], 2)
        if kind in OTHERS:
            continue
        row[f"{kind} CPU s"] = round(median(each["cpu_seconds"] for each in measured), 2)
        row[f"{kind} peak MB"] = round(max(each["peak_mb"] for each in measured))
    for other in OTHERS:
        row.setdefault(f"{other} s", "")
    row["kernel / scan"] = round(seconds["kernel"] / seconds["scan"], 1)
    row["SQL / kernel"] = round(seconds["sql"] / seconds["kernel"], 1)
    return row


def scan(day: GeneratedDay, memory_limit: str) -> None:
    """Read the columns that counting reads. DuckDB would skip them without the hash."""
    with Engine(memory_limit).connect() as connection:
        connection.execute(
            "SELECT bit_xor(hash(organization_id, sensor_id, recorded_at, value)) "
            "FROM read_parquet(?)",
            [day.paths],
        ).fetchall()


def kernel(day: GeneratedDay, memory_limit: str) -> None:
    """The snapshot as the pipeline takes it."""
    assert _snapshot(day, Engine(memory_limit)) == "kernel"


def sql(day: GeneratedDay, memory_limit: str) -> None:
    """The same, with all counting in SQL."""
    assert _snapshot(day, Engine(memory_limit, kernel=False)).startswith("sql")


def _snapshot(day: GeneratedDay, engine: Engine) -> str:
    """Count the day, take its snapshot and check every total. Returns the method."""
    with tempfile.TemporaryDirectory(dir=day.folder.parent, prefix="snapshots-") as target:
        readings, snapshots = Folder(str(day.folder)), Folder(target)
        snapshot = take_snapshot(engine, readings, snapshots, DAY)
    counted, usage = snapshot.counted, snapshot.organizations
    assert counted.readings == day.readings, counted
    assert counted.exact_duplicates == day.duplicates, counted
    assert counted.rows_read == day.readings + day.duplicates, counted
    assert sum(each.reading_volume for each in usage) == day.readings
    assert sum(each.active_sensors for each in usage) == day.sensors
    return counted.method


def spark(day: GeneratedDay, memory_limit: str) -> None:
    """The same on a local Spark, which takes seconds to start."""
    assert _snapshot(day, Engine(memory_limit, spark="local[*]")) == "spark"


# Only the counts, as one would write them first: no activity, quarantine or checks -----------


def duckdb_query(day: GeneratedDay, memory_limit: str) -> None:
    """One query over distinct rows."""
    with Engine(memory_limit).connect() as connection:
        rows = connection.execute(
            "SELECT organization_id, count(DISTINCT sensor_id), count(*) FROM (SELECT DISTINCT "
            "organization_id, sensor_id, recorded_at FROM read_parquet(?)) GROUP BY 1",
            [day.paths],
        ).fetchall()
    _check(day, sum(row[1] for row in rows), sum(row[2] for row in rows))


def pandas_frame(day: GeneratedDay, _memory_limit: str) -> None:
    """Everything in memory, duplicates dropped, grouped."""
    import pandas as pd

    frame = pd.concat([pd.read_parquet(path, columns=KEY) for path in day.paths])
    groups = frame.drop_duplicates().groupby("organization_id")["sensor_id"]
    _check(day, groups.nunique().sum(), groups.size().sum())


def polars_frame(day: GeneratedDay, _memory_limit: str) -> None:
    """A lazy frame, collected by the streaming engine."""
    import polars as pl

    frame = pl.scan_parquet(day.paths).select(KEY).unique()
    counts = frame.group_by("organization_id").agg(pl.col("sensor_id").n_unique(), pl.len())
    found = counts.collect(engine="streaming")
    _check(day, found["sensor_id"].sum(), found["len"].sum())


KEY = ["organization_id", "sensor_id", "recorded_at"]
OTHERS = {
    "DuckDB query": duckdb_query,
    "pandas": pandas_frame,
    "Polars": polars_frame,
    "Spark": spark,
}


def others(readings: int) -> list[str]:
    """Those that can be measured: pandas if all fits in memory, Polars and Spark if installed."""
    possible = dict.fromkeys(OTHERS)
    if readings >= MANY:
        del possible["pandas"]
    if readings < FEW:
        del possible["Spark"]
    for other, package in (("Polars", "polars"), ("Spark", "pyspark")):
        if importlib.util.find_spec(package) is None:
            possible.pop(other, None)
    return list(possible)


def _check(day: GeneratedDay, sensors: int, readings: int) -> None:
    assert (sensors, readings) == (day.sensors, day.readings), (sensors, readings)


def _in_new_process(kind: str, home: Path, readings: int, memory_limit: str) -> dict[str, float]:
    """Measure one kind in a new process: its seconds, and its peak memory."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.counting",
        kind,
        str(home),
        str(readings),
        memory_limit,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def _measure(kind: str, home: str, readings: str, memory_limit: str) -> None:
    begun = time.perf_counter()
    day = generate(Path(home), int(readings))
    work: dict[str, Callable[[GeneratedDay, str], None]] = {
        "scan": scan,
        "kernel": kernel,
        "sql": sql,
        **OTHERS,
    }
    if kind in work:
        work[kind](day, memory_limit)
    seconds = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    measured = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / unit,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    _measure(*sys.argv[1:])
