"""A usage snapshot, from readings to the finished file, against a bare scan of its columns.

The scan reads every value with the same engine and memory limit and keeps nothing: nobody who
counts with DuckDB can be faster. Each measurement is a process of its own, so that its peak
memory is its own too; both kinds take turns, so that a busy minute of the machine hits both.
"""

from __future__ import annotations

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
from billing_pipeline.usage import Engine, Folder, take_snapshot

MANY = 50_000_000
"""From so many readings on, one repetition has to do instead of three."""


def measure_counting(home: Path, readings: int, memory_limit: str) -> dict[str, Any]:
    """One row of the table; keys are its columns."""
    _alone("generate", home, readings, memory_limit)
    scans, snapshots = [], []
    for _ in range(1 if readings >= MANY else 3):
        scans.append(_alone("scan", home, readings, memory_limit))
        snapshots.append(_alone("snapshot", home, readings, memory_limit))
    scan_seconds = median(each["seconds"] for each in scans)
    snapshot_seconds = median(each["seconds"] for each in snapshots)
    return {
        "readings": readings,
        "memory limit": memory_limit,
        "repetitions": len(scans),
        "scan s": round(scan_seconds, 2),
        "scan peak MB": round(max(each["peak_mb"] for each in scans)),
        "snapshot s": round(snapshot_seconds, 2),
        "snapshot peak MB": round(max(each["peak_mb"] for each in snapshots)),
        "snapshot / scan": round(snapshot_seconds / scan_seconds, 1),
    }


def scan(day: GeneratedDay, memory_limit: str) -> None:
    """Read the columns that counting reads. The hash is there because DuckDB skips idle reads."""
    with Engine(memory_limit).connect() as connection:
        connection.execute(
            "SELECT bit_xor(hash(organization_id, sensor_id, recorded_at, value)) "
            "FROM read_parquet(?)",
            [day.paths],
        ).fetchall()


def snapshot(day: GeneratedDay, memory_limit: str) -> None:
    """Count the day and take its snapshot, as the pipeline does, and check every total."""
    with tempfile.TemporaryDirectory(dir=day.folder.parent, prefix="snapshots-") as target:
        readings, snapshots = Folder(str(day.folder)), Folder(target)
        taken = take_snapshot(Engine(memory_limit), readings, snapshots, DAY)
    counted, usage = taken.counted, taken.organizations
    assert counted.readings == day.readings, counted
    assert counted.exact_duplicates == day.duplicates, counted
    assert counted.rows_read == day.readings + day.duplicates, counted
    assert sum(each.reading_volume for each in usage) == day.readings
    assert sum(each.active_sensors for each in usage) == day.sensors


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
    work: dict[str, Callable[[GeneratedDay, str], None]] = {"scan": scan, "snapshot": snapshot}
    if what in work:
        work[what](day, memory_limit)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(json.dumps({"seconds": seconds, "peak_mb": peak / unit}))


if __name__ == "__main__":
    _in_new_process(*sys.argv[1:])
