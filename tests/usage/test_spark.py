"""Spark against SQL: every output of both; and a real run through Spark Connect."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.errors import ConfigurationError, UnusableInput
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.spark import SparkUnavailable
from tests.support import World, eventually, yesterday
from tests.usage.days import HURTING, Lake, files, table


@pytest.fixture
def engine(spark: str) -> Engine:
    return Engine("512MB", spark=spark)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(day=st.lists(files(), max_size=4))
def test_spark_and_sql_agree_on_any_day(
    engine: Engine, day: list[tuple[pa.Table, dict[str, Any]]]
) -> None:
    with TemporaryDirectory() as home:
        lake = Lake(Path(home))
        for n, (rows, options) in enumerate(day):
            lake.write(rows, f"file-{n}", **options)
        assert lake.same(engine).method.startswith("spark")


@pytest.mark.parametrize("build", HURTING)
def test_spark_and_sql_agree_on_days_built_to_hurt(
    engine: Engine, lake: Lake, build: Callable[[Lake], None]
) -> None:
    build(lake)
    assert lake.same(engine).conserved


def test_floats_are_compared_on_spark_or_by_their_texts(engine: Engine, lake: Lake) -> None:
    bits = np.random.default_rng(7).integers(0, 2**32, 5_000, np.uint32)
    some = [2.0e-3, 1.1e-38, 1e-45, 3.4028235e38, 16777216, 33554432, 0.1, 21.1, -0.0, np.nan]
    floats = np.concatenate([bits.view(np.float32), np.array(some, np.float32)])
    ids, seconds = ["s"] * len(floats), range(len(floats))
    lake.write(table(ids, ids, seconds, pa.array(floats)), "a")
    lake.write(table(ids, ids, seconds, pa.array(np.roll(floats, 1))), "b")
    lake.write(table(ids, ids, seconds, pa.array(floats)), "c")
    counted = lake.same(engine)
    assert counted.method == "spark"
    assert (counted.exact_duplicates, counted.conflicting_duplicates) == (5_010, 5_010)
    texts = [float(str(value)) for value in floats]
    lake.write(table(ids, ids, seconds, pa.array(texts)), "d")
    assert lake.same(engine).method == "spark; 3 file(s) read by DuckDB"


def test_halves_of_floats_and_other_types_are_read_by_duckdb(engine: Engine, lake: Lake) -> None:
    lake.write(table(["a"], ["s"], [1], pa.array([1.5], pa.float16())), "half")
    lake.write(table(["a"], ["s"], [1], pa.array([Decimal("1.50")])), "decimal")
    lake.write(
        table(["a"], ["s"], [1], pa.array([1.5])), "plain", use_deprecated_int96_timestamps=True
    )
    counted = lake.same(engine)
    assert counted.method == "spark; 2 file(s) read by DuckDB"
    assert (counted.readings, counted.exact_duplicates) == (1, 2)


def test_names_that_spark_would_skip_or_misread_are_read_by_duckdb(
    engine: Engine, lake: Lake
) -> None:
    for name in ("_a", "b:c", "b:[c]"):
        lake.write(table(["a"], [name], [1]), name)
    assert lake.same(engine).readings == 3


def test_a_day_that_is_mostly_not_for_spark_is_counted_by_sql(
    engine: Engine, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing_pipeline.usage.spark.MOST_PASSED", 2)
    lake.write(table(["a"] * 3, ["s"] * 3, range(3), pa.array([Decimal("1.5")] * 3)))
    lake.write(table(["a"], ["s"], [1]), "b")
    assert lake.same(engine).method == "sql: 3 rows lie in files that Spark does not read"


@pytest.mark.parametrize(
    "remote",
    ["sc://:15002/;token=SECRET", "sc://h:abc/;token=SECRET", "sc://h/?token=SECRET",
     "sc://SECRET@h", "sc://h/;session_id=SECRET", "spark://h"],
)  # fmt: skip
def test_an_impossible_address_of_spark_is_refused_and_not_shown(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_SPARK_REMOTE", remote)
    with pytest.raises(ConfigurationError, match="BILLING_SPARK_REMOTE") as message:
        load_settings()
    assert "SECRET" not in str(message.value)


@pytest.mark.usefixtures("spark")
def test_sparks_message_about_its_address_is_not_shown(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-c", "from billing_pipeline.cli.app import main; main()", "doctor"],
            env={
                **os.environ,
                "BILLING_ENGINE": "spark",
                "BILLING_SPARK_REMOTE": f"sc://127.0.0.1:{port}/;use_ssl=true;token=c2Vj==",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert "cannot be used" in ran.stdout
    assert "c2Vj" not in ran.stdout + ran.stderr


def test_ids_that_are_not_text_fail_the_day_on_spark_too(engine: Engine, lake: Lake) -> None:
    broken = pa.array([b"a\xff"], pa.binary()).view(pa.string())
    lake.write(table(broken, ["s"], [1]), "broken", store_schema=False)
    with pytest.raises(UnusableInput, match=r"broken\.parquet"):
        lake.count(engine)


@pytest.mark.usefixtures("spark")
def test_an_unreachable_spark_fails_the_day_soon_and_names_no_file(lake: Lake) -> None:
    lake.write(table(["a"], ["s"], [1]))
    nobody = Engine("512MB", spark="sc://127.0.0.1:9/;token=secret")
    with pytest.raises(SparkUnavailable, match=r"sc://127\.0\.0\.1:9 cannot be reached") as message:
        lake.count(nobody)
    assert "secret" not in str(message.value) + repr(nobody)
    with pytest.raises(SparkUnavailable, match="cannot be reached"):
        lake.count(Engine("512MB", spark="sc://127.0.0.1:99999"))


# Through Spark Connect -------------------------------------------------------------------------


@pytest.fixture
def connect(spark: str, tmp_path: Path) -> Iterator[str]:
    """A Spark Connect server in a process of its own."""
    import pyspark

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = Path(pyspark.__file__).parent
    with (tmp_path / "spark.log").open("wb") as log:
        server = subprocess.Popen(
            [
                home / "bin" / "spark-submit",
                "--class", "org.apache.spark.sql.connect.service.SparkConnectServer",
                "--master", spark,
                "--driver-memory", "512m",
                "--conf", f"spark.connect.grpc.binding.port={port}",
                "--conf", "spark.connect.grpc.binding.address=127.0.0.1",
                "--conf", "spark.driver.host=127.0.0.1",
                "--conf", "spark.driver.bindAddress=127.0.0.1",
                "--conf", "spark.ui.enabled=false",
                "spark-internal",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "SPARK_HOME": str(home)},
            start_new_session=True,
        )  # fmt: skip
        try:
            eventually(lambda: _listens(port), 60, "Spark Connect listens")
            yield f"sc://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_run_counts_through_spark_connect_and_reports_what_was_counted(
    world: World, connect: str
) -> None:
    world.make_meters()
    world.make_customers(["a", "b"])
    days = [yesterday() - timedelta(days=1), yesterday()]
    usage = {day: {"a": {"s": 3, "t": 2}, "b": {"u": 1}} for day in days}
    for day in days:
        world.write_readings(day, usage[day])
        written = world.home / "readings" / f"reading_date={day}" / "readings.jsonl"
        pd.read_json(written, lines=True).to_parquet(written.with_suffix(".parquet"))
        written.unlink()
    billing = [sys.executable, "-c", "from billing_pipeline.cli.app import main; main()"]
    ran = subprocess.run(
        [*billing, "run", "--from", str(days[0]), "--to", str(days[1]), "--json"],
        env={
            **os.environ,
            **world.environment,
            "BILLING_ENGINE": "spark",
            "BILLING_SPARK_REMOTE": connect,
        },
        cwd=world.home,
        capture_output=True,
        text=True,
        timeout=180,
    )
    document = json.loads(ran.stdout)
    assert ran.returncode == 0, document
    assert document["sent"] == 8
    assert world.billed() == world.due(usage)
    for day in days:
        inputs = world.home / "snapshots" / f"usage_day={day}" / "inputs.json"
        assert json.loads(inputs.read_text())["method"] == "spark"
