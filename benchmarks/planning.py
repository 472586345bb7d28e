"""Planning by number of organizations: a day for the first time and again, and a whole backfill.

Everything is the pipeline's own: readings in Parquet, their snapshots, the customers file, the
ledger, the sandbox in a process of its own. What Stripe would have taken in hours is marked as
verified in the ledger instead of being sent; then all days are reported again from the snapshots that
lie there, and nothing is new.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
from pydantic import SecretStr
from sqlalchemy import update

from benchmarks.delivery import make_customers, running_sandbox
from benchmarks.webhooks import new_database, running_postgres
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.tables import meter_events
from billing_pipeline.operations.bill import (
    count_usage,
    counted_already,
    report_days,
    verify_days,
)
from billing_pipeline.operations.context import (
    Context,
    utc_now,
)
from billing_pipeline.rules.model import State
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.catalogue import ensure_meters

DAYS = 34
"""As far back as Stripe takes anything."""

NO_PAYERS = "http://127.0.0.1:9"
"""An address where nothing answers: planning goes on without Stripe, and nothing is sent."""


def measure_planning(home: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A row of the table for each kind of database and number of organizations."""
    with _databases(home, [f"day_{size}" for size in sizes]) as (folder, urls):
        return [
            {
                "database": kind,
                **_one_day(folder / kind / str(size), size, url),
                "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
            }
            for kind, each in urls.items()
            for size, url in zip(sizes, each, strict=True)
        ]


def measure_backfill(home: Path, organizations: int) -> list[dict[str, Any]]:
    """A row for each kind of database. Raises if anything was sent, or left."""
    with _databases(home, ["backfill"]) as (folder, urls):
        return [
            {"database": kind, **_backfill(folder / kind, organizations, url)}
            for kind, [url] in urls.items()
        ]


@contextmanager
def _databases(home: Path, names: Sequence[str]) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """A folder, and the URLs of as many empty databases of each kind as there are names."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="planning-") as made:
        folder = Path(made)
        with running_postgres(folder) as maintenance:
            yield (
                folder,
                {
                    "SQLite": [f"sqlite:///{folder}/{name}.db" for name in names],
                    "PostgreSQL": [new_database(maintenance, f"bench_{name}") for name in names],
                },
            )


def _one_day(folder: Path, organizations: int, url: str) -> dict[str, Any]:
    day = utc_now().date() - timedelta(days=1)
    customers = {f"org-{n:05}": f"cus_{n:06}" for n in range(organizations)}
    with open_rooms(folder, url, NO_PAYERS, customers) as context:
        write_readings(folder / "readings", [day], organizations)
        count_usage(context, day)
        first = _timed(lambda: report_days(context, [day]))
        again = _timed(lambda: report_days(context, [day]))
        counts = context.ledger.read(queries.counts, [day])
    assert counts["planned"] == 2 * organizations, counts
    return {"organizations": organizations, "plan a day s": first, "plan it again s": again}


def _backfill(folder: Path, organizations: int, url: str) -> dict[str, Any]:
    """All days once more, with nothing new in any of them."""
    days = [utc_now().date() - timedelta(days=n) for n in range(DAYS - 1, 0, -1)]
    folder.mkdir(parents=True)
    state = folder / "stripe.jsonl"
    customers = make_customers(state, organizations)
    with running_sandbox(state, 0) as base:
        write_readings(folder / "readings", days, organizations)
        with open_rooms(folder, url, base, customers, make_meters=True) as context:
            counting = _timed(lambda: [count_usage(context, day) for day in days])
        with open_rooms(folder, url, NO_PAYERS, customers) as context:
            planning = _timed(lambda: report_days(context, days))
            _take_for_verified(context)
        with open_rooms(folder, url, base, customers) as context:
            begun = time.perf_counter()
            assert all(counted_already(context, day) for day in days)
            reporting = report_days(context, days)
            report = verify_days(context, days)
            seconds = time.perf_counter() - begun
            counts = context.ledger.read(queries.counts, days)
    assert (reporting.sent, report.agreed, reporting.stopped) == (0, 0, None), reporting
    assert counts["verified"] == 2 * organizations * len(days), counts
    return {
        "days": len(days),
        "organizations": organizations,
        "counted and planned for the first time s": round(counting + planning, 1),
        "with nothing new s": round(seconds, 1),
    }


def write_readings(folder: Path, days: list[date], organizations: int) -> None:
    """One sensor with two readings per organization and day."""
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
def open_rooms(
    folder: Path, url: str, base: str, customers: dict[str, str], *, make_meters: bool = False
) -> Iterator[Context]:
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


def _take_for_verified(context: Context) -> None:
    """As if Stripe had taken all of it, hours ago, and shown it in its summaries."""
    then = utc_now() - timedelta(hours=5)
    with context.ledger.engine.begin() as connection:
        connection.execute(
            update(meter_events).values(
                state=State.VERIFIED, first_attempt_at=then, last_attempt_at=then, accepted_at=then
            )
        )


def _timed(act: Any) -> float:
    begun = time.perf_counter()
    act()
    return round(time.perf_counter() - begun, 1)
