"""Readings and snapshots on object storage: the same counts, and writes that replace whole objects.

A local S3 server answers, in a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from billing_pipeline.errors import UnusableInput
from billing_pipeline.ledger import queries
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.snapshot import is_current, load_snapshot, take_snapshot
from billing_pipeline.usage.sources.folders import Folder
from tests.support import World, yesterday

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("serving", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""

DAY = date(2026, 3, 10)
ENGINE = Engine("512MB")


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """A local S3 server that ends with this module's tests."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        message = re.fullmatch(r"serving (\d+)\n", server.stdout.readline())
        assert message, "the S3 server did not start"
        try:
            yield int(message.group(1))
        finally:
            server.kill()


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    """A bucket of its own for each test; its URI."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = re.sub("[^a-z0-9]", "-", request.node.name.lower())[:60].strip("-")
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def put(bucket: str, day: date, name: str, rows: list[tuple[str, str, int, float]]) -> None:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    frame = pd.DataFrame(
        [(o, s, midnight + timedelta(seconds=n), v) for o, s, n, v in rows],
        columns=["organization_id", "sensor_id", "recorded_at", "value"],
    )
    with fsspec.open(f"{bucket}/readings/reading_date={day}/{name}", "wb") as file:
        if name.endswith(".parquet"):
            frame.to_parquet(file)
        else:
            file.write(frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%SZ").encode())


@pytest.mark.parametrize("second_format", ["parquet", "csv"])
def test_a_day_is_counted_and_kept_on_s3(bucket: str, second_format: str) -> None:
    readings, snapshots = Folder(f"{bucket}/readings"), Folder(f"{bucket}/snapshots")
    put(bucket, DAY, "a.parquet", [("acme", "s", 1, 1.5), ("acme", "t", 2, 1.5)])
    put(bucket, DAY, f"b.{second_format}", [("acme", "s", 1, 1.5), ("bolt", "u", 3, 2.5)])
    snapshot = take_snapshot(ENGINE, readings, snapshots, DAY)
    assert (snapshot.counted.readings, snapshot.counted.exact_duplicates) == (3, 1)
    by_sql = second_format == "csv"
    assert snapshot.counted.method.startswith("sql" if by_sql else "kernel")
    assert load_snapshot(ENGINE, snapshots, DAY) == snapshot
    assert is_current(readings, snapshots, DAY)
    put(bucket, DAY, "late.parquet", [("bolt", "u", 4, 2.5)])
    assert not is_current(readings, snapshots, DAY)
    again = take_snapshot(ENGINE, readings, snapshots, DAY)
    assert {o.organization_id: o.reading_volume for o in again.organizations} == {
        "acme": 2,
        "bolt": 2,
    }
    assert is_current(readings, snapshots, DAY)


def test_a_write_that_fails_leaves_the_old_object_whole(bucket: str) -> None:
    folder = Folder(f"{bucket}/kept")
    with folder.replacing("day", "file") as draft:
        draft.write_text("old")

    def dies() -> None:
        with folder.replacing("day", "file") as draft:
            draft.write_text("half of the ne")
            raise RuntimeError("the process dies")

    with pytest.raises(RuntimeError, match="dies"):
        dies()
    with folder.open("day", "file") as file:
        assert file.read() == b"old"
    with folder.replacing("day", "file") as draft:
        draft.write_text("new")
    with folder.open("day", "file") as file:
        assert file.read() == b"new"
    assert [f.name for f in folder.files("day") or []] == ["file"]


def test_readings_on_s3_are_billed(
    bucket: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_READINGS_URI", f"{bucket}/readings")
    monkeypatch.setenv("BILLING_SNAPSHOTS_URI", f"{bucket}/snapshots")
    world.make_meters()
    world.make_customers(["acme", "bolt"])
    day = yesterday()
    rows = [("acme", "s", 1, 1.0), ("acme", "s", 1, 1.0), ("acme", "t", 2, 1.0)]
    put(bucket, day, "a.parquet", [*rows, ("bolt", "u", 5, 2.0)])
    world.bill([day])
    usage = {"acme": {"s": 1, "t": 1}, "bolt": {"u": 1}}
    assert world.billed() == world.due({day: usage})
    assert world.context().ledger.read(queries.counts, [day])["verified"] == 4


def test_no_bucket_is_not_a_day_without_readings(bucket: str, tmp_path: Path) -> None:
    nowhere, kept = Folder("s3://no-such-bucket/readings"), Folder(str(tmp_path))
    with pytest.raises((UnusableInput, OSError)):
        take_snapshot(ENGINE, nowhere, kept, DAY)
