"""Carry-forward: what becomes of usage that its own period no longer accepts. A person decides.

    held for good → approved: reported in the organization's current period
                  → dismissed: written off, with the reason on record

Nothing is re-dated: the closed cell keeps what Stripe has recorded of it, and the amount is entered
openly in days of the current period (`metering/adjustments`), linked to what it corrects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from billing_pipeline.ledger.adjustments import Adjustment
from billing_pipeline.ledger.inquiry import HeldUsage
from billing_pipeline.operations.reporting import (
    Context,
    period_boundaries,
    read_segments,
    usage_by_organization,
)
from billing_pipeline.rules.adjustments import (
    Entry,
    adjusted_by,
    allocate,
)
from billing_pipeline.rules.eligibility import (
    Eligibility,
    Payers,
)
from billing_pipeline.rules.model import (
    HOLD_EXPLANATIONS,
    Cell,
    HoldReason,
    Meter,
    Usage,
)
from billing_pipeline.rules.segments import (
    Segment,
    segment_bounds,
    whole_day,
)
from billing_pipeline.rules.timestamps import OLDEST, day_start, too_old
from billing_pipeline.settings import ConfigurationError


@dataclass(frozen=True, slots=True)
class OpenAdjustment:
    """An amount that waits for a decision. The id stands for just this amount: a later reading
    of the same closed day makes it another one."""

    id: str
    cell: Cell
    at: int
    amount: int
    held: HeldUsage

    def as_json(self) -> dict[str, Any]:
        """As `billing adjustments list --json` prints it."""
        return {
            **self.held.as_json(),
            "id": self.id,
            "amount": self.amount,
            "explanation": HOLD_EXPLANATIONS[HoldReason(self.held.reason)],
        }


def open_adjustments(context: Context) -> list[OpenAdjustment]:
    """Every amount that waits for a decision."""
    return [_open_adjustment(context, held) for held in context.inquiry.open_adjustments()]


def _open_adjustment(context: Context, held: HeldUsage) -> OpenAdjustment:
    cell, at = held.cell, held.start or day_start(held.cell.usage_day)
    content = json.dumps(
        [cell.usage_day.isoformat(), cell.organization_id, cell.event_name, at,
         held.difference, context.adjustments.number(cell, at)]
    )  # fmt: skip
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return OpenAdjustment(f"adj-{cell.usage_day:%Y%m%d}-{digest}", cell, at, held.difference, held)


def approve(context: Context, id: str, reason: str) -> Adjustment:
    """Enter an amount in the organization's current period; the next run reports it there.

    Raises ConfigurationError where there is no such amount, no reason, no period that takes it,
    or fewer units in that period than are to be taken back.
    """
    found = _open(context, id, reason)
    entries = _room_for(context, found)
    return _decide(context, found, reason, entries)


def dismiss(context: Context, id: str, reason: str) -> Adjustment:
    """Write an amount off, for a reason that stays on record. Raises ConfigurationError."""
    return _decide(context, _open(context, id, reason), reason, None)


def _open(context: Context, id: str, reason: str) -> OpenAdjustment:
    if not reason.strip():
        raise ConfigurationError("a decision needs a reason: it stays on record")
    found = next((each for each in open_adjustments(context) if each.id == id), None)
    if found is None:
        raise ConfigurationError(
            f"no amount {id} waits for a decision (it may have been decided, or have changed with "
            "later readings): `billing adjustments list` shows what does"
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
        found.held.reason,
        entries is not None,
        reason.strip(),
        context.ledger.run,
        context.clock(),
        tuple(entries or ()),
    )
    with context.ledger.planning() as connection:
        now_held = context.inquiry.held_segment(connection, found.cell, found.held.start)
        if now_held is None or now_held.difference != found.amount:
            raise ConfigurationError(f"{found.id} has changed at this moment; list it again")
        context.adjustments.write(connection, decision, found.held.start)
    return decision


def _room_for(context: Context, found: OpenAdjustment) -> list[Entry]:
    """Where in the current period the amount is reported: in the latest days that take it."""
    cell, now = found.cell, context.clock()
    meters = {
        meter.event_name: meter
        for meter in context.ledger.known_meters(context.settings.billing_meters)
    }
    meter = meters.get(cell.event_name)
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
            f"{cell.organization_id} has no current billing period: an amount can be reported there "
            "once it has one again, or be dismissed"
        )
    takers = []
    day = now.date()  # counted and reported when it is over
    while day >= max(datetime.fromtimestamp(first, UTC).date(), (now - OLDEST).date()):
        taker = _taker(context, meters, payers, Cell(day, cell.organization_id, cell.event_name),
                       eligibility, first)  # fmt: skip
        if taker is not None and taker[0] != cell:
            takers.append(taker)
        day -= timedelta(days=1)
    # A day that is counted is reported at once; today, when it is over.
    takers.sort(key=lambda taker: taker[0].usage_day == now.date())
    entries = allocate(found.amount, takers)
    if entries is None:
        units = sum(units for _, _, units in takers)
        raise ConfigurationError(
            f"{found.id} takes back {-found.amount}, and the current period has only {units} so "
            "far: approve it later, or dismiss it"
        )
    return entries


def _current_since(eligibility: Eligibility, meter: Meter, now: int) -> int | None:
    """The start of the billing period that runs now; 0 where no subscription bills the meter."""
    relevant = {s.id for s in eligibility.subscriptions if s.bills(meter.meter_id)}
    if not relevant:
        return 0
    starts = [p.start for p in eligibility.periods if p.subscription in relevant and p.covers(now)]
    return max(starts, default=None)


def _taker(
    context: Context,
    meters: Mapping[str, Meter],
    payers: Payers,
    cell: Cell,
    eligibility: Eligibility,
    first: int,
) -> tuple[Cell, int, int] | None:
    """The last part of a day that may be reported in the current period, with its units."""
    day, now, meter = cell.usage_day, context.clock(), meters[cell.event_name]
    ends = period_boundaries(context, list(meters.values()), payers, day)
    snapshot = context.usage.snapshot(day)
    if snapshot is None:
        if day != now.date():
            return None
        segments = [Segment(start, end, Usage()) for start, end in segment_bounds(
            day, ends.get(cell.organization_id, ()))]  # fmt: skip
    else:
        usage = usage_by_organization(snapshot).get(cell.organization_id, Usage())
        segments = read_segments(context, day, ends).get(
            cell.organization_id, [whole_day(day, usage)]
        )
    fit = [
        segment
        for segment in segments
        if segment.end > first
        and eligibility.hold_reason(meter.meter_id, segment.end - 1) is None
        and not too_old(segment.start, now)
    ]
    if not fit:
        return None
    adjustments = context.adjustments.adjustments([day])[day].get(cell, ())
    units = fit[-1].usage.of(meter.measure) + adjusted_by(adjustments, fit[-1])
    return cell, fit[-1].start, max(0, units)


def document(context: Context) -> dict[str, Any]:
    """What waits for a decision, and what was decided."""
    return {
        "open": [each.as_json() for each in open_adjustments(context)],
        "decided": [each.as_json() for each in context.adjustments.decided()],
    }


def story(context: Context, id: str) -> dict[str, Any]:
    """One amount or decision, with what was reported of the cell and where it was reported.

    Raises ConfigurationError for an unknown id.
    """
    decision = next(iter(context.adjustments.decided(id=id)), None)
    waiting = next((each for each in open_adjustments(context) if each.id == id), None)
    if decision is None and waiting is None:
        raise ConfigurationError(f"no adjustment {id}: `billing adjustments list` shows them")
    segment = decision or waiting
    assert segment is not None
    cells = [segment.cell, *(entry.cell for entry in (decision.entries if decision else ()))]
    return {
        **segment.as_json(),
        "events": [
            event for cell in dict.fromkeys(cells) for event in context.inquiry.story(cell).events
        ],
    }
