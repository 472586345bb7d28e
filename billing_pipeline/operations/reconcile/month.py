"""Reconcile one month.

A month has the periods that end in it. The month that runs has those that run, too, each as far as
it is over. Changes nothing, but for sensor activity that is counted again where files have changed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger.queries import verified_cells, verified_since
from billing_pipeline.operations.context import Context, Progress
from billing_pipeline.operations.reconcile.rows import Reconciliation, Row, RowPeriod, Verified
from billing_pipeline.operations.reconcile.tallies import Tally, add_up, tallies_of
from billing_pipeline.operations.reconcile.verdict import judge_row, late_events
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.invoices import StripesFigures, ask_periods


def reconcile_month(
    context: Context,
    month: date,
    *,
    organizations: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Reconciliation:
    """Reconcile the month that begins on `month`, for some organizations or (None) all.

    Raises ConfigurationError for a month that has not begun, or a key that Stripe refuses.
    """
    following = (month + timedelta(days=32)).replace(day=1)
    whole, now = RowPeriod(day_start(month), day_start(following), None), context.clock()
    if now.timestamp() < whole.start:
        raise ConfigurationError(f"{month:%Y-%m} has not begun")
    tallies = tallies_of(context, whole, organizations)
    problems = add_up(context, tallies, whole, organizations, progress)
    found = _ask_stripe(context, tallies, progress)
    late = late_events(context)
    rows = [judge_row(tally, found, late, now) for tally in tallies]
    return Reconciliation(
        month,
        sorted((row for row in rows if _is_of_interest(row)), key=_order),
        _verified(context, whole.days, organizations),
        problems + found.unread,
    )


REPORT_FILE = "reconciliation.csv"


def keep(context: Context, found: Reconciliation) -> str:
    """Write a month's rows as CSV beside the snapshots, replacing those of before; the path."""
    folder = f"month={found.month:%Y-%m}"
    rows = [row.as_json() for row in found.rows]
    for row in rows:
        row["causes"] = "; ".join(f"{each['step']}: {each['text']}" for each in row["causes"])
        row["unexplained"] = ", ".join(row["unexplained"])
        row |= {f"difference_{step}": much for step, much in row.pop("differences").items()}
    with context.snapshots.replacing(folder, REPORT_FILE) as draft:
        pd.DataFrame(rows).to_csv(draft, index=False)
    return context.snapshots.path(folder, REPORT_FILE)


def _ask_stripe(
    context: Context, tallies: Sequence[Tally], progress: Progress | None
) -> StripesFigures:
    questions = {q for tally in tallies if (q := tally.question) is not None}
    if context.settings.stripe_secret_key is None or not questions:
        return StripesFigures()

    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress("asking", done, total)

    with Reads(context.ledger, context.gateway.reads_a_month, context.clock) as reads:
        return ask_periods(context.gateway, reads, sorted(questions, key=str), watch)


def _is_of_interest(row: Row) -> bool:
    """Not a gap in which nothing was used or reported."""
    figures = row.figures
    return row.period.billing is not None or any(
        (figures.readings, figures.snapshot, figures.ledger, figures.stripe)
    )


def _order(row: Row) -> tuple[Any, ...]:
    return row.organizations, row.period.start, row.meter, row.period.customer or ""


def _verified(
    context: Context, days: Sequence[date], organizations: Collection[str] | None
) -> Verified:
    cells, verified = context.ledger.read(verified_cells, days, organizations)
    hours = sorted(
        (at - datetime.fromtimestamp(day_end(day), UTC)).total_seconds() / 3600
        for day, at in context.ledger.read(verified_since, days).items()
    )
    return Verified(cells, verified, hours[len(hours) // 2] if hours else None)
