"""Billing periods that need something now: those about to close, and what came too late for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from billing_pipeline.customers.directory import FinalPeriod
from billing_pipeline.ledger.queries import Closed, accepted_after
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.day_inputs import SpanInputs, unfinished_days
from billing_pipeline.rules.timestamps import day_of, day_start, is_over
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from billing_pipeline.usage.activity import DAY_ERRORS


def unbilled(context: Context) -> list[dict[str, Any]]:
    """Events that Stripe accepted for a period after its invoice was final: no invoice has them.

    This can happen while the event about the final invoice is on its way. `certain` is False where
    an event was tried before and after: only the invoice tells.
    """
    periods: Mapping[Closed, list[FinalPeriod]] = defaultdict(list)
    for period in context.customers.final_periods():
        closed = Closed(period.customer, period.start, period.end, period.finalized_at)
        periods[closed].append(period)
    return [
        {**event, "invoice": period.invoice_id, "finalized_at": period.finalized_at.isoformat()}
        for closed, event in context.ledger.read(accepted_after, list(periods))
        for period in periods[closed]
    ]


def closing_days(context: Context) -> dict[date, list[str]]:
    """The days of periods whose invoice is a draft, with the invoices they are for.

    Only those with something missing: a snapshot of what lies there now, a report from it, an
    outcome, a verification. The day on which the period ends is asked for while it lasts, because
    readings may still come. Days that Stripe no longer accepts are not among them.
    """
    now = context.clock()
    first = max((now - OLDEST_REPORTED).date(), context.settings.billing_start_day)
    wanted: dict[date, list[str]] = defaultdict(list)
    for period in context.customers.closing_periods():
        day = max(day_of(period.start), first)
        while day_start(day) < period.end <= now.timestamp():
            wanted[day].append(period.invoice_id)
            day += timedelta(days=1)
    unfinished = set(unfinished_days(context)) if wanted else set()
    return {
        day: invoices
        for day, invoices in sorted(wanted.items())
        if day in unfinished or not is_over(day, now) or not _is_counted(context, day)
    }


def period_ends_in(context: Context, day: date) -> bool:
    """Whether a billing period has ended inside this day, so that a segment can be reported."""
    now = context.clock().timestamp()
    boundaries = SpanInputs.read(context, context.known_meters(), [day]).boundaries_of(day)
    return any(instant <= now for instants in boundaries.values() for instant in instants)


def _is_counted(context: Context, day: date) -> bool:
    """Whether the day's snapshot is whole and says what its files say now."""
    try:
        return context.usage.is_current(day)
    except DAY_ERRORS:  # the run that this asks for will say so, on its day
        return False
