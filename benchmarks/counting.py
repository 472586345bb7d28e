"""A usage snapshot, from readings to the finished file, against a bare scan of its columns.

The scan reads every value with the same engine and memory limit and keeps nothing: nobody who
counts with DuckDB can be faster. Each measurement is a process of its own, so that its peak
memory is its own too; all kinds take turns, so that a busy minute of the machine hits them all.
CPU seconds, with those of starting Python, tell what other work on the machine has hidden.
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
"""From so many readings on, one repetition has to do instead of three."""

FEW = 1_000_000
"""Of fewer readings Spark would only show how long it takes to start."""


def measure_counting(home: Path, readings: int, memory_limit: str) -> dict[str, Any]:
    """One row of the table; keys are its columns."""
    _alone("generate", home, readings, memory_limit)
    taken: dict[str, list[dict[str, float]]] = {"scan": [], "kernel": [], "sql": []}
    taken |= {other: [] for other in others(readings)}
    repetitions = 1 if readings >= MANY else 3
    for _ in range(repetitions):
        for what, measured in taken.items():
            measured.append(_alone(what, home, readings, memory_limit))
    row: dict[str, Any] = {
        "readings": readings,
        "memory limit": memory_limit,
        "repetitions": repetitions,
    }
    seconds = {}
    for what, measured in taken.items():
        seconds[what] = median(each["seconds"] for each in measured)
        row[f"{what} s"] = round(seconds[what], 2)
        if what in OTHERS:
            continue
        row[f"{what} CPU s"] = round(median(each["cpu_seconds"] for each in measured), 2)
        row[f"{what} peak MB"] = round(max(each["peak_mb"] for each in measured))
    for other in OTHERS:
        row.setdefault(f"{other} s", "")
    row["kernel / scan"] = round(seconds["kernel"] / seconds["scan"], 1)
    row["SQL / kernel"] = round(seconds["sql"] / seconds["kernel"], 1)
    return row


def scan(day: GeneratedDay, memory_limit: str) -> None:
    """Read the columns that counting reads. The hash is there because DuckDB skips idle reads."""
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
    """The same, with all counting left to SQL."""
    assert _snapshot(day, Engine(memory_limit, kernel=False)).startswith("sql")


def _snapshot(day: GeneratedDay, engine: Engine) -> str:
    """Count the day, take its snapshot and check every total; returns the method."""
    with tempfile.TemporaryDirectory(dir=day.folder.parent, prefix="snapshots-") as target:
        readings, snapshots = Folder(str(day.folder)), Folder(target)
        taken = take_snapshot(engine, readings, snapshots, DAY)
    counted, usage = taken.counted, taken.organizations
    assert counted.readings == day.readings, counted
    assert counted.exact_duplicates == day.duplicates, counted
    assert counted.rows_read == day.readings + day.duplicates, counted
    assert sum(each.reading_volume for each in usage) == day.readings
    assert sum(each.active_sensors for each in usage) == day.sensors
    return counted.method


def spark(day: GeneratedDay, memory_limit: str) -> None:
    """The same on a Spark of this machine, which takes seconds to start."""
    assert _snapshot(day, Engine(memory_limit, spark="local[*]")) == "spark"


# What others write first: the counts only, without activity, quarantine or checks ------------


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
    """Those that can be measured: pandas where all fits in memory, Polars and Spark if there."""
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


def _alone(what: str, home: Path, readings: int, memory_limit: str) -> dict[str, float]:
    """Do one thing in a new process: its seconds, and its peak memory with all that it loaded."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.counting",
        what,
        str(home),
        str(readings),
        memory_limit,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def _in_new_process(what: str, home: str, readings: str, memory_limit: str) -> None:
    begun = time.perf_counter()
    day = generate(Path(home), int(readings))
    work: dict[str, Callable[[GeneratedDay, str], None]] = {
        "scan": scan,
        "kernel": kernel,
        "sql": sql,
        **OTHERS,
    }
    if what in work:
        work[what](day, memory_limit)
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
    _in_new_process(*sys.argv[1:])
