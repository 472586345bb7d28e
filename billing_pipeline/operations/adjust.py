"""Adjustments: what becomes of usage that its own period no longer accepts. A person decides.

    on hold → approved: reported in the organization's current period
            → dismissed: written off, with the reason on record

Nothing is re-dated. The closed cell keeps what Stripe recorded, and the amount is entered openly in
days of the current period (`rules/adjustments`), linked to what it corrects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger.adjustments import (
    Adjustment,
    decided_adjustments,
    decisions_about,
    write_adjustment,
)
from billing_pipeline.ledger.queries import HoldRecord, hold_of_segment, holds_to_decide, story
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.day_inputs import SpanInputs, read_day_inputs, read_segments
from billing_pipeline.rules.adjustments import Entry, adjusted_by, allocate
from billing_pipeline.rules.eligibility import Eligibility
from billing_pipeline.rules.model import Cell, Meter, Usage
from billing_pipeline.rules.segments import Segment, segments_between
from billing_pipeline.rules.timestamps import day_of, day_start, too_old
from billing_pipeline.stripe_facts import OLDEST_REPORTED


@dataclass(frozen=True, slots=True)
class OpenAdjustment:
    """An amount that waits for a decision. Its id is for just this amount: a later reading
    of the same closed day makes another one."""

    id: str
    cell: Cell
    at: int
    amount: int
    hold: HoldRecord

    def as_json(self) -> dict[str, Any]:
        """As `billing adjustments list --json` prints it."""
        return {**self.hold.as_json(), "id": self.id, "amount": self.amount}


def open_adjustments(context: Context) -> list[OpenAdjustment]:
    """Every amount that waits for a decision."""
    with context.ledger.reading() as connection:
        return [_open_adjustment(connection, hold) for hold in holds_to_decide(connection)]


def _open_adjustment(connection: Connection, hold: HoldRecord) -> OpenAdjustment:
    cell, at = hold.cell, hold.start or day_start(hold.cell.usage_day)
    decided = decisions_about(connection, cell, at)
    content = json.dumps(
        [cell.usage_day.isoformat(), cell.organization_id, cell.event_name, at,
         hold.difference, decided]
    )  # fmt: skip
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return OpenAdjustment(f"adj-{cell.usage_day:%Y%m%d}-{digest}", cell, at, hold.difference, hold)


def approve(context: Context, id: str, reason: str) -> Adjustment:
    """Enter an amount in the organization's current period; the next run reports it there.

    Raises ConfigurationError if there is no such amount, no reason, no period that accepts it, or
    fewer units in that period than are to be taken back.
    """
    found = _find(context, id, reason)
    return _decide(context, found, reason, _allocate(context, found))


def dismiss(context: Context, id: str, reason: str) -> Adjustment:
    """Write an amount off, for a reason that stays on record. Raises ConfigurationError."""
    return _decide(context, _find(context, id, reason), reason, None)


def _find(context: Context, id: str, reason: str) -> OpenAdjustment:
    if not reason.strip():
        raise ConfigurationError("a decision needs a reason: it stays on record")
    found = next((each for each in open_adjustments(context) if each.id == id), None)
    if found is None:
        raise ConfigurationError(
            f"no amount {id} waits for a decision (it may have been decided, or have changed with "
            "later readings): `billing adjustments list` shows the open ones"
        )
    return found


def _decide(
    context: Context, found: OpenAdjustment, reason: str, entries: Sequence[Entry] | None
) -> Adjustment:
    decision = Adjustment(
        found.id,
        found.cell,
        found.at,
        found.amount,
        found.hold.reason,
        entries is not None,
        reason.strip(),
        context.ledger.run,
        context.clock(),
        tuple(entries or ()),
    )
    with context.ledger.planning() as writer:
        present = hold_of_segment(writer.connection, found.cell, found.hold.start)
        if present is None or present.difference != found.amount:
            raise ConfigurationError(f"{found.id} has changed at this moment; list it again")
        write_adjustment(writer, decision, found.hold.start)
    return decision


def _allocate(context: Context, found: OpenAdjustment) -> list[Entry]:
    """Where in the current period the amount is reported: in the latest days that accept it."""
    cell, now = found.cell, context.clock()
    meters = context.known_meters()
    meter = next((m for m in meters if m.event_name == cell.event_name), None)
    if meter is None or meter.replaces:
        raise ConfigurationError(
            f"{cell.event_name} keeps one value and adds nothing up: an amount of the past cannot "
            "be reported on it; dismiss it with a reason"
        )
    payers = context.payers()
    customer = payers.customers.get(cell.organization_id)
    if customer is None:
        raise ConfigurationError(f"{cell.organization_id} has no Stripe customer: map it first")
    eligibility = payers.eligibility_of(customer)
    first = _current_since(eligibility, meter, int(now.timestamp()))
    if first is None:
        raise ConfigurationError(
            f"{cell.organization_id} has no current billing period: approve the amount when it has "
            "one again, or dismiss it"
        )
    begin, today = max(day_of(first), (now - OLDEST_REPORTED).date()), now.date()
    days = [today - timedelta(days=n) for n in range((today - begin).days + 1)]
    span = SpanInputs.read(context, meters, days)
    places = [
        place
        for day in days
        if (place := _place(span, replace(cell, usage_day=day), meter, first)) is not None
        and place[0] != cell
    ]
    # A day that is counted is reported at once; today, when it is over.
    places.sort(key=lambda place: place[0].usage_day == today)
    entries = allocate(found.amount, places)
    if entries is None:
        units = sum(units for _, _, units in places)
        raise ConfigurationError(
            f"{found.id} takes back {-found.amount}, and the current period has only {units} so "
            "far: approve it later, or dismiss it"
        )
    return entries


def _current_since(eligibility: Eligibility, meter: Meter, now: int) -> int | None:
    """The start of the billing period that runs now; 0 if no subscription bills the meter."""
    relevant = {s.id for s in eligibility.subscriptions if s.bills(meter.meter_id)}
    if not relevant:
        return 0
    starts = [p.start for p in eligibility.periods if p.subscription in relevant and p.covers(now)]
    return max(starts, default=None)


def _place(span: SpanInputs, cell: Cell, meter: Meter, first: int) -> tuple[Cell, int, int] | None:
    """The last segment of a day that may be reported in the current period, with its units."""
    context, day, organization = span.context, cell.usage_day, cell.organization_id
    boundaries = span.boundaries_of(day)
    counted = read_segments(context, day, boundaries)
    with context.ledger.reading() as connection:
        inputs, _ = read_day_inputs(span, connection, day, counted, [organization], judge=False)
    if inputs.snapshot_id is not None:
        segments = inputs.segments_of(organization)
    elif day == inputs.now.date():
        bounds = segments_between(day, boundaries.get(organization, ()))
        segments = [Segment(start, end, Usage()) for start, end in bounds]
    else:
        return None
    eligibility = inputs.payers.eligibility_of(inputs.payers.customers.get(organization))
    fit = [
        segment
        for segment in segments
        if segment.end > first
        and eligibility.hold_reason(meter.meter_id, segment.end - 1) is None
        and not too_old(segment.start, inputs.now)
    ]
    if not fit:
        return None
    adjusted = adjusted_by(inputs.adjustments.get(cell, ()), fit[-1])
    return cell, fit[-1].start, max(0, fit[-1].usage.of(meter.measure) + adjusted)


def list_adjustments(context: Context) -> dict[str, Any]:
    """The amounts that wait for a decision, and what was decided."""
    return {
        "open": [each.as_json() for each in open_adjustments(context)],
        "decided": [each.as_json() for each in context.ledger.read(decided_adjustments)],
    }


def show_adjustment(context: Context, id: str) -> dict[str, Any]:
    """One amount or decision, with the events of its cell and of the cells it was reported in.

    Raises ConfigurationError for an unknown id.
    """
    decision = next(iter(context.ledger.read(decided_adjustments, id=id)), None)
    waiting = next((each for each in open_adjustments(context) if each.id == id), None)
    found = decision or waiting
    if found is None:
        raise ConfigurationError(f"no adjustment {id}: `billing adjustments list` shows them")
    cells = [found.cell, *(entry.cell for entry in (decision.entries if decision else ()))]
    with context.ledger.reading() as connection:
        events = [e for cell in dict.fromkeys(cells) for e in story(connection, cell).events]
    return {**found.as_json(), "events": events}
