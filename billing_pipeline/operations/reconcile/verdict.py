"""Stripe's side of a row: its status, and why an invoice differs from the meter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from billing_pipeline.operations.context import Context
from billing_pipeline.operations.periods import unbilled
from billing_pipeline.operations.reconcile.rows import Row, RowPeriod
from billing_pipeline.operations.reconcile.tallies import Tally
from billing_pipeline.rules.agreement import possible_figures
from billing_pipeline.rules.model import Formula
from billing_pipeline.rules.reconciliation import Cause, Reconciled, Step
from billing_pipeline.stripe_api.invoices import StripesFigures
from billing_pipeline.stripe_facts import INVOICED_STATUSES, LONGEST_DRAFT

Late = Mapping[tuple[str, str], Sequence[tuple[int, bool]]]
"""By invoice and meter: (value, certain) of events accepted after the invoice was final."""


def late_events(context: Context) -> Late:
    """What Stripe accepted after invoices were final."""
    found: dict[tuple[str, str], list[tuple[int, bool]]] = defaultdict(list)
    for event in unbilled(context):
        found[event["invoice"], event["meter"]].append((event["value"], event["certain"]))
    return found


def judge_row(tally: Tally, found: StripesFigures, late: Late, now: datetime) -> Row:
    """A row with Stripe's side of it, its status, and the causes that invoices have."""
    question, status = tally.question, _status(tally.period, now)
    stripe = invoiced = None
    if question is not None:
        stripe = found.summaries.get(question)
        if question.invoice in found.invoiced:
            invoiced = found.invoiced[question.invoice].get(question.meter_id, 0)
    if status == "missing":
        invoiced = 0
    figures = Reconciled(
        tally.readings,
        tally.snapshot,
        tally.ledger,
        tally.ledger + tally.beside,
        stripe,
        invoiced,
        tuple(tally.causes),
        tally.meter.formula is Formula.LAST,
    )
    more = _invoice_causes(tally, figures, late)
    if figures.keeps_one and stripe == 0 and tally.unsure_at > tally.newest_at:
        message = "a zero whose outcome stayed unknown was counted, and could not be reported again"
        more.append(Cause(Step.STRIPE, message, None))
    figures = replace(figures, causes=(*figures.causes, *more))
    return Row(
        tally.period,
        tally.organizations,
        tally.meter.event_name,
        figures,
        status,
        tuple(tally.shares or ()),
    )


def _status(row: RowPeriod, now: datetime) -> str:
    period = row.billing
    if period is None:
        return "none"
    if period.is_final:
        return "final"
    if period.end > now.timestamp():
        return "open"
    if period.invoice_id is not None:
        return "draft"
    return "missing" if now.timestamp() > period.end + LONGEST_DRAFT.total_seconds() else "open"


def _invoice_causes(tally: Tally, figures: Reconciled, late: Late) -> list[Cause]:
    """Why an invoice bills another figure than Stripe's meter has."""
    difference, period = figures.differences.get(Step.INVOICE, 0), tally.period.billing
    if not difference or period is None:
        return []
    if period.invoice_id is None:
        if period.cut_short:
            message = ("the subscription was cancelled inside the period, and no invoice for it is "
                    "known: without `invoice_now` Stripe drops the usage")  # fmt: skip
        elif period.status is not None and period.status not in INVOICED_STATUSES:
            message = (
                f"its subscription is {period.status} in Stripe, which makes no invoice for it"
            )
        else:
            return []
        return [Cause(Step.INVOICE, message, None)]
    causes = []
    if missed := late.get((period.invoice_id, tally.meter.event_name), ()):
        message = f"{len(missed)} event(s) were accepted, or tried again, after it was final"
        if tally.meter.formula is Formula.LAST:
            return [Cause(Step.INVOICE, message, None)]
        surely = sum(value for value, certain in missed if certain)
        perhaps = [value for value, certain in missed if not certain]
        amounts = {-surely - more for more in possible_figures(0, perhaps, replaces=False) or ()}
        amount = int(difference) if difference in amounts else -surely
        causes.append(Cause(Step.INVOICE, message, amount))
        difference -= amount
    if figures.invoiced == 0 and difference > 0:
        causes.append(Cause(Step.INVOICE, "a total below zero bills 0", int(difference)))
    return causes
