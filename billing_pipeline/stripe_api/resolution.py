"""Resolving ambiguous events by Stripe's summaries; never by sending blindly.

Stripe knows an identifier for at least 24 hours. Until RESEND_WINDOW has passed since the first
attempt, an event is sent again under the same identifier: Stripe's answer then shows whether it was
there. Later only the summary shows whether the event was counted.

A summary that shows the event resolves it at any time. (Stripe repeats a stored 500 for as long as
it knows the Idempotency-Key, although it counted the event.) A summary that does not show it proves
nothing while the event may still be sent again, or while the summary may lag.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import stripe

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger.events import Outcome, Outgoing, deliverable
from billing_pipeline.ledger.evidence import ExpectedFigure, expected_figures
from billing_pipeline.rules.agreement import possible_figures
from billing_pipeline.rules.model import NOT_COUNTED, Meter, MeterEvent, State
from billing_pipeline.rules.timestamps import too_old
from billing_pipeline.stripe_api.client import MeterAccess
from billing_pipeline.stripe_api.summaries import AtZero, Summaries, figure_of_a_zero
from billing_pipeline.stripe_facts import CUSTOMER_NOT_FOUND, LAG_ALLOWANCE, RESEND_WINDOW


def needs_resolution(outgoing: Outgoing, now: datetime) -> bool:
    """Whether an event that may have been counted may no longer be sent again."""
    first = outgoing.first_attempt_at
    return first is not None and (
        now - first >= RESEND_WINDOW or too_old(outgoing.event.timestamp, now)
    )


@dataclass(frozen=True)
class _Evidence:
    """What is known of an ambiguous event.

    `expected` is the figure of its day without it, `beside` are the values of other ambiguous
    events that may be in Stripe's figure `reported`; `at_zero`: see `figure_of_a_zero`. `final`:
    the event will not be sent again, so that its absence can be believed.
    """

    outgoing: Outgoing
    meter: Meter
    expected: ExpectedFigure | None
    beside: Sequence[int]
    reported: float
    at_zero: AtZero | None
    final: bool


async def resolve(
    summaries: Summaries,
    access: MeterAccess,
    ambiguous: Sequence[Outgoing],
    never_again: Collection[int],
) -> list[Outcome]:
    """Decide what can be decided; the other events stay ambiguous, with the reason.

    `never_again` are the row ids of events that will not be sent again in any case.
    """
    now, ledger = access.clock(), access.ledger
    days = sorted({outgoing.event.cell.usage_day for outgoing in ambiguous})
    known: dict[tuple[date, str, str], list[ExpectedFigure]] = defaultdict(list)
    for each in ledger.read(expected_figures, days, access.replacing, unverified_only=False):
        known[each.usage_day, each.customer, each.event_name].append(each)
    every = ledger.read(deliverable, days, [State.AMBIGUOUS])
    outcomes = []
    for outgoing in ambiguous:
        key, final = _key(outgoing), outgoing.id in never_again or needs_resolution(outgoing, now)
        # Events of other organizations with the same customer may be in the same figure.
        beside = [o.event.value for o in every if _key(o) == key and o.id != outgoing.id]
        expected = next((e for e in known[key] if _contains(e, outgoing.event)), None)
        try:
            found = await _read(summaries, access, outgoing, expected, beside, final=final)
        except (StripeUnreachable, stripe.PermissionError) as error:
            outcomes.append(_undecided(outgoing, f"its summary cannot be read: {error}"))
        except stripe.InvalidRequestError as error:
            gone = error.code == "resource_missing" and final
            why = f"its summary cannot be read: {error}"
            outcomes.append(_customer_gone(outgoing) if gone else _undecided(outgoing, why))
        else:
            outcomes.append(_decide(found, now))
    return outcomes


def _contains(expected: ExpectedFigure, event: MeterEvent) -> bool:
    """Whether an event belongs to this figure of its day."""
    segment = expected.segment
    return segment is None or segment[0] <= event.timestamp < segment[1]


async def _read(
    summaries: Summaries,
    access: MeterAccess,
    outgoing: Outgoing,
    expected: ExpectedFigure | None,
    beside: Sequence[int],
    *,
    final: bool,
) -> _Evidence:
    """Read Stripe's figure of an event's day or segment. Raises as `Summaries` does."""
    event, day = outgoing.event, outgoing.event.cell.usage_day
    meter = access.by_name[event.cell.event_name]
    # In the figure of the day, another segment may hide this event, or show in its place.
    segment = event.segment if meter.replaces else None
    if expected is not None:
        segment = expected.segment
    if segment is not None:
        figure = await summaries.between(str(meter.meter_id), event.customer, *segment)
    else:
        figure = (await summaries.by_day(meter, event.customer, day, day)).get(day, 0.0)
    at_zero = None
    if not event.value:
        at_zero = await figure_of_a_zero(summaries, access, meter, event.customer, event.timestamp)
    return _Evidence(outgoing, meter, expected, beside, figure, at_zero, final)


def _decide(evidence: _Evidence, now: datetime) -> Outcome:
    """Present, absent, or not known yet, from one figure that may lag."""
    outgoing, meter, reported = evidence.outgoing, evidence.meter, evidence.reported
    value, beside, at_zero = outgoing.event.value, evidence.beside, evidence.at_zero
    found = Outcome(outgoing.id, State.ACCEPTED, error_message="found in Stripe's summary")
    certain, pending = _shown_by_now(evidence.expected, meter, now)
    if at_zero is not None:
        if at_zero.figure is None:
            return _undecided(outgoing, "the value before it may not be in Stripe's summary yet")
        if at_zero.figure == 0:  # whichever event made it so: the value is right
            return found
        certain, reported = at_zero.before, at_zero.figure
        beside = [*beside, *at_zero.perhaps]
    without = possible_figures(certain, [*pending, *beside], meter.replaces)
    if without is None:
        return _undecided(outgoing, "too many events of its day are not verified yet")
    with_it = {value} if meter.replaces else {figure + value for figure in without}
    if reported in with_it - without:
        return found
    last = outgoing.last_attempt_at
    lag_over = last is None or now - last > LAG_ALLOWANCE
    if meter.replaces:
        # If its absence changes nothing, it may be reported again: the figure is right either way.
        absent = reported in without
    else:
        # A figure that lacks accepted events lags, and proves no absence.
        absent = reported == (certain or 0) + sum(pending) and reported not in with_it
    if absent and evidence.final and lag_over:
        message = "not in Stripe's summary"
        return Outcome(outgoing.id, State.REJECTED, error_code=NOT_COUNTED, error_message=message)
    return _undecided(outgoing, f"Stripe's summary shows {reported:g}, which decides nothing yet")


def _shown_by_now(
    expected: ExpectedFigure | None, meter: Meter, now: datetime
) -> tuple[int | None, list[int]]:
    """The value that a summary surely shows, and the values that it may still lack.

    A value that was accepted longer ago than summaries may lag counts as shown.
    """
    if expected is None:
        return None, []
    certain, pending = expected.certain, []
    for value, since in zip(expected.pending, expected.pending_since, strict=True):
        if now - since <= LAG_ALLOWANCE:
            pending.append(value)
        else:
            certain = value if meter.replaces else (certain or 0) + value
    return certain, pending


def _customer_gone(outgoing: Outgoing) -> Outcome:
    """Counted or not, it is on no bill: Stripe does not know the customer."""
    message = "its outcome was unknown, and Stripe does not know its customer any more"
    return Outcome(
        outgoing.id, State.REJECTED, error_code=CUSTOMER_NOT_FOUND, error_message=message
    )


def _undecided(outgoing: Outgoing, why: str) -> Outcome:
    return Outcome(outgoing.id, State.AMBIGUOUS, error_code="undecided", error_message=why)


def _key(outgoing: Outgoing) -> tuple[date, str, str]:
    cell = outgoing.event.cell
    return cell.usage_day, outgoing.event.customer, cell.event_name
