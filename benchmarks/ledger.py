"""Questions to a large ledger on PostgreSQL: what a sensor, a run and a person ask, each timed.

The ledger is filled by the database itself: events of a year, verified, for as many organizations
as it takes; then a day is asked about. With `--plans` the database's own plan of each query that
takes longer than SLOW is printed too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine, event, text

from benchmarks.webhooks import new_database, running_postgres
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.events import deliverable, recorded_events
from billing_pipeline.ledger.evidence import expected_figures, newest_before
from billing_pipeline.ledger.queries import Closed
from billing_pipeline.operations.context import (
    Context,
    utc_now,
)
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.rules.model import (
    Cell,
    State,
)
from billing_pipeline.settings import Settings

DAYS = 365
SLOW = 0.05
"""Seconds."""

METERS = {"active_sensors": True, "temperature_readings": False}

_FILL = """
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


def measure_ledger(home: Path, events: int, *, plans: bool = False) -> list[dict[str, Any]]:
    """One row of the table per question; keys are its columns."""
    home.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=home, prefix="ledger-") as name,
        running_postgres(Path(name)) as maintenance,
    ):
        settings = Settings(
            stripe_secret_key=SecretStr("sk_test_benchmark"),
            billing_database_url=SecretStr(new_database(maintenance, "bench_ledger")),
            billing_readings_uri=name,
            billing_snapshots_uri=name,
        )
        with Context.open(settings, "benchmark") as context:
            day = utc_now().date() - timedelta(days=1)
            organizations = events // (DAYS * len(METERS))
            _fill(context.ledger.engine, day, organizations)
            watch = _Watch(context.ledger.engine)
            return [
                watch.timed(what, ask, plans=plans)
                for what, ask in _questions(context, day, organizations).items()
            ]


def _fill(database: Engine, last: date, organizations: int) -> None:
    first = last - timedelta(days=DAYS - 1)
    with database.begin() as connection:
        connection.execute(
            text(_FILL), {"first": first, "last": last, "organizations": organizations}
        )
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE meter_events"))


def _questions(context: Context, day: date, organizations: int) -> dict[str, Callable[[], Any]]:
    ledger, inquiry = context.ledger, context.inquiry
    recent = [day - timedelta(days=n) for n in range(34)]
    stamp = int(time.time())
    closed = [
        Closed(f"cus_{n}", stamp - 40 * 86_400, stamp - 10 * 86_400, utc_now())
        for n in range(1, 1001)
    ]
    return {
        "what was reported of a day": lambda: ledger.read(recorded_events, [day]),
        "a day at rest": lambda: ledger.is_at_rest(day, "basis", METERS),
        "what is to be sent, 34 days": lambda: ledger.read(deliverable, recent, [State.PLANNED]),
        "what is to be verified, 34 days": lambda: ledger.read(
            expected_figures, recent, METERS, unverified_only=True
        ),
        "unfinished days": lambda: unfinished_days(context),
        "counts of a day": lambda: ledger.read(queries.counts, [day]),
        "counts of 34 days": lambda: ledger.read(queries.counts, recent),
        "held and refused": lambda: (ledger.read(LEFT_OUT), ledger.read(queries.rejected)),
        "one cell's story": lambda: ledger.read(
            queries.story, Cell(day, f"org-{organizations // 2}", "x")
        ),
        "the value before a zero": lambda: ledger.read(
            newest_before, "active_sensors", f"cus_{organizations // 2}", stamp
        ),
        "who was reported for a customer": lambda: ledger.reported_for(day, ["cus_1", "cus_2"]),
        "late for 1,000 closed periods": lambda: ledger.read(queries.accepted_after, closed),
    }


class _Watch:
    """Times questions, and remembers the report that each one made."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._seen: list[tuple[str, Any]] = []
        event.listen(database, "before_cursor_execute", self._see)

    def _see(
        self, _conn: Any, _cursor: Any, reporting: str, parameters: Any, _ctx: Any, _many: bool
    ) -> None:
        self._seen.append((reporting, parameters))

    def timed(self, what: str, ask: Callable[[], Any], *, plans: bool) -> dict[str, Any]:
        ask()  # once to warm the cache, as a server that runs is
        self._seen.clear()
        begun = time.perf_counter()
        ask()
        seconds = time.perf_counter() - begun
        if plans and seconds > SLOW:
            self._explain(what)
        return {
            "question": what,
            "queries": len(self._seen),
            "ms": round(seconds * 1000, 1),
        }

    def _explain(self, what: str) -> None:
        seen, self._seen = self._seen, []
        with self._database.connect() as connection:
            for reporting, parameters in seen[:3]:
                if reporting.lstrip().upper().startswith(("SELECT", "WITH")):
                    rows = connection.exec_driver_sql(f"EXPLAIN ANALYZE {reporting}", parameters)
                    print(f"-- {what}", *(row[0] for row in rows), sep="\n")
        self._seen = seen
