"""Stripe's error reports: events that it accepted and did not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from billing_pipeline.database import upsert
from billing_pipeline.errors import BillingError
from billing_pipeline.ledger.events import Outcome, change_state
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.rows import event_of, meter_of
from billing_pipeline.ledger.tables import meter_errors, meter_events, meters
from billing_pipeline.rules.model import SENT, Measure, State
from billing_pipeline.stripe_facts import CLOCKS_APART


@dataclass(frozen=True, slots=True)
class ReportedError:
    """One kind of error in a report: how many events, and samples that name some of them."""

    code: str
    count: int
    message: str
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What Stripe did not count. `meter_id` is None if no such meter was found."""

    event_id: str
    meter_id: str | None
    window_start: datetime
    window_end: datetime
    errors: tuple[ReportedError, ...]


class StillSending(BillingError):
    """A reported event is being sent at this moment: the report is applied a little later."""


def take_report(writer: Writer, report: ErrorReport, now: datetime) -> None:
    """Apply a report of events that Stripe did not count.

    Events that its samples name, by identifier or Idempotency-Key, are rejected. The other events
    that the meter accepted in the reported window lose their `verified` and are compared with
    Stripe again. Raises StillSending if a named event is being sent at this moment.
    """
    connection = writer.connection
    rows = connection.execute(select(meters)).all()
    known = {row.event_name: row for row in rows}
    ours = {row.event_name for row in rows if row.meter_id == report.meter_id}
    samples = [sample for error in report.errors for sample in error.samples]
    named = _named_events(connection, known, samples)
    if any(row.state == State.SENDING for row in named.values()):
        raise StillSending(f"{report.event_id} names an event that is being sent")
    outcomes: dict[int, Outcome] = {}
    for error in report.errors:
        matched = {named[sample].id for sample in error.samples if sample in named}
        for id in matched:
            message = f"reported by {report.event_id}: {error.message}"
            outcomes[id] = Outcome(id, State.REJECTED, error_code=error.code, error_message=message)
        _keep_error(writer, report, error, len(matched))
    change_state(writer, list(outcomes.values()), now, was={State.AMBIGUOUS, *SENT})
    doubtful = writer.connection.scalars(
        select(meter_events.c.id).where(
            meter_events.c.state == State.VERIFIED,
            meter_events.c.event_name.in_(ours),
            meter_events.c.accepted_at >= report.window_start - CLOCKS_APART,
            meter_events.c.accepted_at <= report.window_end + CLOCKS_APART,
        )
    ).all()
    again = f"to be verified again: {report.event_id} reports errors"
    unsure = [Outcome(id, State.ACCEPTED, error_message=again) for id in doubtful]
    change_state(writer, unsure, now, was={State.VERIFIED})


def _keep_error(writer: Writer, report: ErrorReport, error: ReportedError, matched: int) -> None:
    """Keep one line of a report. Applied again, it keeps the number of events that were found."""
    key = {"event_id": report.event_id, "code": error.code}
    before = writer.connection.scalar(
        select(meter_errors.c.matched).where(
            *(meter_errors.c[name] == value for name, value in key.items())
        )
    )
    upsert(
        writer.connection,
        meter_errors,
        key,
        {
            "meter_id": report.meter_id,
            "errors": error.count,
            "matched": max(matched, before or 0),
            "window_start": report.window_start,
            "window_end": report.window_end,
            "message": error.message,
        },
    )


def _named_events(
    connection: Connection, known: Mapping[str, Row[Any]], samples: Sequence[str]
) -> dict[str, Row[Any]]:
    """The events that samples name, by their identifiers or by their Idempotency-Keys."""
    wanted = {*samples, *(sample.rpartition("-")[0] for sample in samples)}
    rows = connection.execute(
        select(meter_events)
        .where(meter_events.c.identifier.in_(wanted))
        .order_by(meter_events.c.id)  # all lock in one order, so none waits in a ring
        .with_for_update()
    ).all()
    found = {row.identifier: row for row in rows}
    for row in rows:
        if row.event_name in known:
            # Which count feeds the meter plays no part in the key.
            meter = meter_of(known[row.event_name], Measure.READING_VOLUME)
            found[event_of(row).idempotency_key(meter)] = row
    return {sample: found[sample] for sample in samples if sample in found}
