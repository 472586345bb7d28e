"""Planning by number of organizations: the first plan of a day, the second, and a backfill.

Readings in Parquet, snapshots, customers file and ledger are those of the pipeline; the sandbox has
its own process. Sending so many events would take hours. Before the backfill, the ledger's events
are therefore marked as verified. The backfill then reports all days again, with nothing new.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from benchmarks.fixtures import (
    NO_STRIPE,
    make_customers,
    new_database,
    open_context,
    running_postgres,
    running_sandbox,
    write_readings,
)
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.tables import meter_events
from billing_pipeline.operations.bill import count_usage, counted_already, report_days, verify_days
from billing_pipeline.operations.context import Context, utc_now
from billing_pipeline.rules.model import State
from billing_pipeline.stripe_facts import OLDEST_REPORTED

DAYS = OLDEST_REPORTED.days


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
    """A row for each kind of database. Raises if an event was sent, or is not verified."""
    with _databases(home, ["backfill"]) as (folder, urls):
        return [
            {"database": kind, **_backfill(folder / kind, organizations, url)}
            for kind, [url] in urls.items()
        ]


@contextmanager
def _databases(home: Path, names: Sequence[str]) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """A folder, and the URLs of empty databases of each kind, one for each name."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix="planning-") as made:
        folder = Path(made)
        with running_postgres(folder) as server:
            yield (
                folder,
                {
                    "SQLite": [f"sqlite:///{folder}/{name}.db" for name in names],
                    "PostgreSQL": [new_database(server, f"bench_{name}") for name in names],
                },
            )


def _one_day(folder: Path, organizations: int, url: str) -> dict[str, Any]:
    day = utc_now().date() - timedelta(days=1)
    customers = {f"org-{n:05}": f"cus_{n:06}" for n in range(organizations)}
    with open_context(folder, url, NO_STRIPE, customers) as context:
        write_readings(folder / "readings", [day], organizations)
        count_usage(context, day)
        first = _timed(lambda: report_days(context, [day]))
        again = _timed(lambda: report_days(context, [day]))
        counts = context.ledger.read(queries.counts, [day])
    assert counts["planned"] == 2 * organizations, counts
    return {"organizations": organizations, "plan a day s": first, "plan it again s": again}


def _backfill(folder: Path, organizations: int, url: str) -> dict[str, Any]:
    """Count, plan and verify days; then report all of them again."""
    days = [utc_now().date() - timedelta(days=n) for n in range(DAYS - 1, 0, -1)]
    folder.mkdir(parents=True)
    state = folder / "stripe.jsonl"
    customers = make_customers(state, organizations)
    with running_sandbox(state, 0) as base:
        write_readings(folder / "readings", days, organizations)
        with open_context(folder, url, base, customers, make_meters=True) as context:
            counting = _timed(lambda: [count_usage(context, day) for day in days])
        with open_context(folder, url, NO_STRIPE, customers) as context:
            planning = _timed(lambda: report_days(context, days))
            _mark_verified(context)
        with open_context(folder, url, base, customers) as context:
            begun = time.perf_counter()
            assert all(counted_already(context, day) for day in days)
            outcome = report_days(context, days)
            report = verify_days(context, days)
            seconds = time.perf_counter() - begun
            counts = context.ledger.read(queries.counts, days)
    assert (outcome.sent, report.agreed, outcome.stopped) == (0, 0, None), outcome
    assert counts["verified"] == 2 * organizations * len(days), counts
    return {
        "days": len(days),
        "organizations": organizations,
        "counted and planned for the first time s": round(counting + planning, 1),
        "with nothing new s": round(seconds, 1),
    }


def _mark_verified(context: Context) -> None:
    """Mark all events as accepted hours ago, and verified since."""
    then = utc_now() - timedelta(hours=5)
    with context.ledger.engine.begin() as connection:
        connection.execute(
            update(meter_events).values(
                state=State.VERIFIED, first_attempt_at=then, last_attempt_at=then, accepted_at=then
            )
        )


def _timed(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return round(time.perf_counter() - begun, 1)
