"""Resolving ambiguous events by Stripe's summaries; never by sending blindly.

Stripe knows an identifier for at least 24 hours. Until RESEND_WINDOW has passed since the first
attempt, the event is sent again under the same identifier: Stripe itself then tells whether it
was there. Later only the summary can tell: it shows the day with the event, or without it.

A summary that shows the event resolves it at any time (Stripe repeats a stored 500 for as long
as it knows the Idempotency-Key, though it counted the event). One that does not show it proves
nothing while the event may still be sent again, or the summary may lag.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime

import stripe

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger.events import (
    Outcome,
    Outgoing,
    deliverable,
)
from billing_pipeline.ledger.evidence import ExpectedFigure, expected_figures
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.rules.agreement import possible_figures
from billing_pipeline.rules.model import (
    NOT_COUNTED,
    Meter,
    MeterEvent,
    State,
)
from billing_pipeline.rules.timestamps import too_old
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.summaries import (
    AtZero,
    daily_figures,
    figure_between,
    figure_of_a_zero,
)
from billing_pipeline.stripe_facts import CUSTOMER_NOT_FOUND, LAG_ALLOWANCE, RESEND_WINDOW


def needs_resolution(outgoing: Outgoing, now: datetime) -> bool:
    """Whether an event that may have been counted may no longer be sent again."""
    first = outgoing.first_attempt_at
    return first is not None and (
        now - first >= RESEND_WINDOW or too_old(outgoing.event.timestamp, now)
    )


async def resolve(
    client: stripe.StripeClient,
    reads: Reads,
    ledger: Ledger,
    meters: Mapping[str, Meter],
    doubtful: Sequence[Outgoing],
    never_again: Collection[int],
    now: datetime,
) -> list[Outcome]:
    """Decide what can be decided; the rest stays ambiguous, with the reason.

    `never_again` are the ids of events that will not be sent again in any case.
    """
    days = sorted({outgoing.event.cell.usage_day for outgoing in doubtful})
    replacing = {name: meter.replaces for name, meter in meters.items()}
    known: dict[tuple[date, str, str], list[ExpectedFigure]] = defaultdict(list)
    for each in ledger.read(expected_figures, days, replacing, unverified_only=False):
        known[each.usage_day, each.customer, each.event_name].append(each)
    ambiguous = ledger.read(deliverable, days, [State.AMBIGUOUS])
    outcomes = []
    for outgoing in doubtful:
        key = _key(outgoing)
        # Events of other organizations with the same customer may be in the same figure.
        beside = [o.event.value for o in ambiguous if _key(o) == key and o.id != outgoing.id]
        event = outgoing.event
        meter = meters[event.cell.event_name]
        try:
            expected = next((s for s in known[key] if _is_about(s, event)), None)
            # Other parts of the day may hide this one in its day's figure, or show in its place.
            segment = event.segment if meter.replaces else None
            if expected is not None:
                segment = expected.segment
            figure = await _figure(client, reads, meter, event, segment)
            at_zero = (
                None
                if event.value
                else await figure_of_a_zero(
                    client, reads, ledger, meter, event.customer, event.timestamp, now
                )
            )
        except stripe.InvalidRequestError as error:
            final = outgoing.id in never_again or needs_resolution(outgoing, now)
            if error.code == "resource_missing" and final:
                outcomes.append(_customer_gone(outgoing))
            else:
                outcomes.append(_undecided(outgoing, f"its summary cannot be read: {error}"))
            continue
        except (StripeUnreachable, stripe.PermissionError) as error:
            outcomes.append(_undecided(outgoing, f"its summary cannot be read: {error}"))
            continue
        outcomes.append(
            _decide(
                outgoing,
                meter,
                expected,
                beside,
                at_zero,
                figure,
                now,
                final=outgoing.id in never_again or needs_resolution(outgoing, now),
            )
        )
    return outcomes


def _is_about(expected: ExpectedFigure, event: MeterEvent) -> bool:
    """Whether an event belongs into this figure of its day."""
    span = expected.segment
    return span is None or span[0] <= event.timestamp < span[1]


async def _figure(
    client: stripe.StripeClient,
    reads: Reads,
    meter: Meter,
    event: MeterEvent,
    segment: tuple[int, int] | None,
) -> float:
    """Stripe's figure of the event's day, or of a part. Raises as `daily_figures` does."""
    day, id = event.cell.usage_day, str(meter.meter_id)
    if segment is not None:
        return await figure_between(client, reads, id, event.customer, *segment)
    figures = await daily_figures(client, reads, id, event.customer, day, day)
    return figures.get(day, 0.0)


def _decide(
    outgoing: Outgoing,
    meter: Meter,
    known: ExpectedFigure | None,
    beside: Sequence[int],
    at_zero: AtZero | None,
    reported: float,
    now: datetime,
    *,
    final: bool,
) -> Outcome:
    """Present, absent, or not to be told yet, from one figure that may lag.

    `final`: whether the event will not be sent again, so that its absence can be believed.
    `beside` are other events that may be in the figure or not; `at_zero` see `figure_of_a_zero`.
    """
    value = outgoing.event.value
    certain, pending = _shown_by_now(known, meter, now) if known else (None, [])
    if at_zero is not None:
        if at_zero.figure is None:
            return _undecided(outgoing, "the value before it may not be in Stripe's summary yet")
        if at_zero.figure == 0:  # whichever event made it so: this one says what is
            return Outcome(outgoing.id, State.ACCEPTED, error_message="found in Stripe's summary")
        certain, reported = at_zero.before, at_zero.figure
        beside = [*beside, *at_zero.perhaps]
    without = possible_figures(certain, [*pending, *beside], meter.replaces)
    if without is None:
        return _undecided(outgoing, "too many events of its day are not verified yet")
    with_it = {value} if meter.replaces else {figure + value for figure in without}
    if reported in with_it - without:
        return Outcome(outgoing.id, State.ACCEPTED, error_message="found in Stripe's summary")
    last = outgoing.last_attempt_at
    lag_over = last is None or now - last > LAG_ALLOWANCE
    if meter.replaces:
        # What cannot be told from its absence may be reported again: the figure is right either way.
        absent = reported in without
    else:
        # A figure that lacks what was accepted lags, and proves no absence.
        absent = reported == (certain or 0) + sum(pending) and reported not in with_it
    if absent and final and lag_over:
        return Outcome(
            outgoing.id,
            State.REJECTED,
            error_code=NOT_COUNTED,
            error_message="not in Stripe's summary",
        )
    return _undecided(outgoing, f"Stripe's summary says {reported:g}, which decides nothing yet")


def _shown_by_now(
    known: ExpectedFigure, meter: Meter, now: datetime
) -> tuple[int | None, list[int]]:
    """What a summary surely shows, and the values that may still be missing from it.

    What was accepted longer ago than summaries may lag counts as shown, though nobody looked.
    """
    certain, pending = known.certain, []
    for value, since in zip(known.pending, known.pending_since, strict=True):
        if now - since <= LAG_ALLOWANCE:
            pending.append(value)
        else:
            certain = value if meter.replaces else (certain or 0) + value
    return certain, pending


def _customer_gone(outgoing: Outgoing) -> Outcome:
    """Whether it was counted or not, it is on no bill: Stripe does not know the customer."""
    return Outcome(
        outgoing.id,
        State.REJECTED,
        error_code=CUSTOMER_NOT_FOUND,
        error_message="its outcome was unknown, and Stripe does not know its customer any more",
    )


def _undecided(outgoing: Outgoing, why: str) -> Outcome:
    return Outcome(outgoing.id, State.AMBIGUOUS, error_code="undecided", error_message=why)


def _key(outgoing: Outgoing) -> tuple[date, str, str]:
    cell = outgoing.event.cell
    return cell.usage_day, outgoing.event.customer, cell.event_name
