"""Questions to a large ledger on PostgreSQL, as a sensor, a run and a person ask them, each timed.

The database fills the ledger itself: verified events of a year, for as many organizations as that
takes, and usage on hold for one organization in twenty. With `--plans` the database's plan of
each query of a slow question is printed too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text

from benchmarks.fixtures import NO_STRIPE, new_database, open_context, running_postgres
from billing_pipeline.ledger import days as ledger_days
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.account import bind
from billing_pipeline.ledger.events import deliverable, recorded_events
from billing_pipeline.ledger.evidence import expected_figures, newest_before
from billing_pipeline.ledger.queries import Closed
from billing_pipeline.operations.context import Context, utc_now
from billing_pipeline.operations.day_inputs import (
    SpanInputs,
    read_digests,
    read_staleness,
    stale_days,
    unfinished_days,
)
from billing_pipeline.rules.day_inputs import PlannedFrom
from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.model import Cell, Meter, State
from billing_pipeline.settings import DEFAULT_METERS
from billing_pipeline.stripe_facts import OLDEST_REPORTED

DAYS = 365
SLOW = 0.05
"""Seconds."""

METERS = [Meter(m.event_name, m.formula, m.measure, meter_id=f"mtr_{m.event_name}")
          for m in DEFAULT_METERS]  # fmt: skip
SNAPSHOT = "snapshot"

_FILL_EVENTS = """
INSERT INTO meter_events (usage_day, organization_id, event_name, revision, identifier, customer,
    value, target, timestamp, snapshot_id, planned_at, planned_by, state, attempts,
    first_attempt_at, last_attempt_at, accepted_at, request_id)
SELECT day, 'org-' || o, name, 1, md5(day || name || o), 'cus_' || o, o, o,
    extract(epoch FROM day)::bigint + 82800, 'snapshot', at, 'fill', 'verified', 1, at, at, at,
    'req_' || md5(name || o || day)
FROM (SELECT d::date AS day, d + interval '26 hours' AS at
        FROM generate_series(:first ::timestamp, :last ::timestamp, '1 day') d) days,
    generate_series(1, :organizations) o,
    (VALUES ('active_sensors'), ('temperature_readings')) meters(name)
"""
_FILL_HOLDS = f"""
INSERT INTO holds (usage_day, organization_id, event_name, value, target, difference, reason, since)
SELECT usage_day, organization_id, event_name, 1, target + 1, 1,
    '{HoldReason.SUBSCRIPTION_INACTIVE}', planned_at
FROM meter_events
WHERE usage_day >= :recent AND event_name = 'temperature_readings' AND value % 20 = 0
"""


def measure_ledger(home: Path, events: int, *, plans: bool = False) -> list[dict[str, Any]]:
    """One row of the table per question; keys are its columns."""
    home.mkdir(parents=True, exist_ok=True)
    organizations = events // (DAYS * len(METERS))
    customers = {f"org-{n}": f"cus_{n}" for n in range(1, organizations + 1)}
    with (
        tempfile.TemporaryDirectory(dir=home, prefix="ledger-") as name,
        running_postgres(Path(name)) as server,
        open_context(Path(name), new_database(server, "bench_ledger"), NO_STRIPE, customers) as c,
    ):
        last = c.clock().date() - timedelta(days=1)
        recent = [last - timedelta(days=n) for n in range(OLDEST_REPORTED.days)]
        _fill(c, recent, organizations)
        watch = _Watch(c.ledger.engine)
        return [
            watch.timed(question, ask, plans=plans)
            for question, ask in _questions(c, recent, organizations).items()
        ]


def _fill(context: Context, recent: Sequence[date], organizations: int) -> None:
    """Fill the ledger, and store what the recent days were planned from."""
    first, last = recent[0] - timedelta(days=DAYS - 1), recent[0]
    database, now = context.ledger.engine, utc_now()
    with database.begin() as connection:
        span = {"first": first, "last": last, "organizations": organizations}
        connection.execute(text(_FILL_EVENTS), span)
        connection.execute(text(_FILL_HOLDS), {"recent": min(recent)})
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE meter_events, holds"))
    context.ledger.write(bind, "acct_benchmark", False, METERS, now)
    inputs = SpanInputs.read(context, METERS, recent)
    with context.ledger.writing() as writer:
        digests = read_digests(inputs, writer.connection, dict.fromkeys(recent, SNAPSHOT))
        for day, digest in digests.items():
            ledger_days.store_planned_from(writer, day, PlannedFrom(digest), None, now)


def _check_up_to_date(context: Context, days: Sequence[date]) -> None:
    span = SpanInputs.read(context, METERS, days)
    with context.ledger.reading() as connection:
        found = read_staleness(span, connection, dict.fromkeys(days, SNAPSHOT))
    assert not any(stale.is_stale for stale, _ in found.values())


def _questions(
    context: Context, recent: Sequence[date], organizations: int
) -> dict[str, Callable[[], object]]:
    read, day, now = context.ledger.read, recent[0], int(time.time())
    replacing = {meter.event_name: meter.replaces for meter in METERS}
    names = [f"cus_{n}" for n in range(1, 1001)]
    closed = [Closed(name, now - 40 * 86_400, now - 10 * 86_400, utc_now()) for name in names]
    middle = organizations // 2
    return {
        "what was reported of a day": lambda: read(recorded_events, [day]),
        "whether 34 days are up to date": lambda: _check_up_to_date(context, recent),
        "stale days": lambda: stale_days(context),
        "unfinished days": lambda: unfinished_days(context),
        "organizations with open cells, 34 days": lambda: read(
            ledger_days.open_organizations, recent
        ),
        "event counts, 34 days": lambda: read(ledger_days.event_counts, recent),
        "what was reported to 1,000 customers": lambda: read(ledger_days.reported_to, {day: names}),
        "what is to be sent, 34 days": lambda: read(deliverable, recent, [State.PLANNED]),
        "what is to be verified, 34 days": lambda: read(
            expected_figures, recent, replacing, unverified_only=True
        ),
        "counts of a day": lambda: read(queries.counts, [day]),
        "counts of 34 days": lambda: read(queries.counts, recent),
        "usage on hold or refused, 34 days": lambda: (
            read(queries.holds_of, recent),
            read(queries.rejected, recent),
        ),
        "one cell's story": lambda: read(
            queries.story, Cell(day, f"org-{middle}", METERS[0].event_name)
        ),
        "the value before a zero": lambda: read(
            newest_before, METERS[0].event_name, f"cus_{middle}", now
        ),
        "late for 1,000 closed periods": lambda: read(queries.accepted_after, closed),
    }


class _Watch:
    """Times questions, and records the queries of each."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._seen: list[tuple[str, Any]] = []
        event.listen(database, "before_cursor_execute", self._see)

    def _see(
        self, _conn: Any, _cursor: Any, query: str, parameters: Any, _ctx: Any, _many: bool
    ) -> None:
        self._seen.append((query, parameters))

    def timed(self, question: str, ask: Callable[[], object], *, plans: bool) -> dict[str, Any]:
        ask()  # fills the cache, as on a server that has been running
        self._seen.clear()
        begun = time.perf_counter()
        ask()
        seconds = time.perf_counter() - begun
        if plans and seconds > SLOW:
            self._explain(question)
        return {"question": question, "queries": len(self._seen), "ms": round(seconds * 1000, 1)}

    def _explain(self, question: str) -> None:
        seen, self._seen = self._seen, []
        with self._database.connect() as connection:
            for query, parameters in seen[:3]:
                if query.lstrip().upper().startswith(("SELECT", "WITH")):
                    rows = connection.exec_driver_sql(f"EXPLAIN ANALYZE {query}", parameters)
                    print(f"-- {question}", *(row[0] for row in rows), sep="\n")
        self._seen = seen
