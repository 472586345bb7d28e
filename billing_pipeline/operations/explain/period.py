"""One organization's billing period: what the invoice bills, and the days that it is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.context import Context, Progress
from billing_pipeline.operations.explain.day import explain_day
from billing_pipeline.operations.explain.links import Link, summary
from billing_pipeline.operations.reconcile.month import reconcile_month
from billing_pipeline.operations.reconcile.rows import Row
from billing_pipeline.rules.model import SENT
from billing_pipeline.rules.reconciliation import Step
from billing_pipeline.rules.timestamps import day_start

FOREVER = 2**40
"""Unix seconds, later than any period ends."""


def explain_period(
    context: Context,
    organization: str,
    period: str,
    meters: Sequence[str],
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The billing period: `YYYY-MM` (all that end in this month), a day inside it, or an invoice.

    Asks Stripe for its figures if there is a key. Raises ConfigurationError for a period that
    cannot be read or does not exist.
    """
    month, within, invoice = _asked_for(context, period)
    found = reconcile_month(context, month, organizations=[organization], progress=progress)
    rows = [
        row
        for row in found.rows
        if organization in row.organizations
        and row.meter in meters
        and (within is None or row.period.start <= within < row.period.end)
        and (invoice is None or (row.period.billing and row.period.billing.invoice_id == invoice))
    ]
    if not rows:
        raise ConfigurationError(
            f"nothing is known of the organization {organization!r} in {period}: no period of its, "
            "no usage, no report. Ids are exact, capital letters and spaces included."
        )
    names = [meter for meter in meters if any(row.meter == meter for row in rows)]
    days = sorted({segment.day for row in rows for segment in row.days})
    explained = {day: explain_day(context, organization, day, names) for day in days}
    lines = [_line(row, organization, explained) for row in rows]
    links = [link for line in lines for link in line["links"]]
    links += [link for document in explained.values() for link in document["links"]]
    return {
        "organization_id": organization,
        "period": period,
        "customer": rows[0].period.customer,
        "lines": lines,
        "days": list(explained.values()),
        "problems": found.problems,
        "checked": summary(links),
    }


def _asked_for(context: Context, period: str) -> tuple[date, int | None, str | None]:
    """The month to reconcile, an instant inside the period, the invoice."""
    if period.startswith("in_"):
        known = context.customers.billing_periods(0, FOREVER)
        ends = [p.end for p in known if p.invoice_id == period]
        if not ends:
            raise ConfigurationError(f"no invoice {period} of a billing period is known")
        last = min(datetime.fromtimestamp(ends[0] - 1, UTC), context.clock()).date()
        return last.replace(day=1), None, period
    try:
        if re.fullmatch(r"\d{4}-\d{2}", period):
            return date.fromisoformat(f"{period}-01"), None, None
        day = date.fromisoformat(period)
    except ValueError:
        raise ConfigurationError(
            f"{period!r} is no period: write a month as YYYY-MM, a day inside the period as "
            "YYYY-MM-DD, or an invoice as in_…"
        ) from None
    instant = day_start(day)
    known = context.customers.billing_periods(instant, instant + 1)
    end = max((p.end for p in known), default=instant + 1)
    last = min(datetime.fromtimestamp(end - 1, UTC), context.clock()).date()
    return last.replace(day=1), instant, None


def _line(row: Row, organization: str, days: dict[date, dict[str, Any]]) -> dict[str, Any]:
    """A line of the invoice, with what each day gives to it."""
    links = list(_links(row, organization, days))
    return {
        **row.as_json(),
        "links": [link.as_json() for link in links],
        "days": [
            {
                "day": segment.day.isoformat(),
                "from": datetime.fromtimestamp(segment.start, UTC).isoformat(),
                "to": datetime.fromtimestamp(segment.end, UTC).isoformat(),
                "organization_id": segment.organization,
                "readings": segment.readings,
                "snapshot": segment.snapshot,
                "ledger": segment.ledger,
                "causes": [cause.text for cause in segment.causes],
            }
            for segment in row.days
        ],
    }


STEPS = {
    Step.INVOICE: ("the invoice bills Stripe's figure", "invoiced"),
    Step.STRIPE: ("Stripe's figure is the ledger's", "stripe"),
    Step.LEDGER: ("the ledger says what the snapshots say", "ledger"),
    Step.SNAPSHOT: ("the snapshots say what the readings prove", "snapshot"),
}


def _links(row: Row, organization: str, days: dict[date, dict[str, Any]]) -> Iterator[Link]:
    figures = row.figures
    for step, (what, _) in STEPS.items():
        amount = figures.differences.get(step)
        causes = "; ".join(cause.text for cause in figures.causes if cause.step is step)
        if amount is None:
            yield Link(what, None, "there is no such figure (yet)")
        elif step in figures.unexplained:
            yield Link(what, False, f"{amount:+g}, and nothing explains it")
        else:
            yield Link(what, True, f"{amount:+g}: {causes}" if amount else "")
    if row.organizations == (organization,):
        # Added up once more from what the days below show.
        events = [
            event
            for day in days.values()
            for meter in day["meters"]
            if meter["meter"] == row.meter
            for event in meter["events"]
            if event["state"] in SENT
            and event["customer"] == row.period.customer
            and row.period.start <= event["timestamp"] < row.period.end
        ]
        if figures.keeps_one:
            newest = max(events, key=lambda event: int(event["timestamp"]), default={"value": 0})
            again = int(newest["value"])
        else:
            again = sum(int(event["value"]) for event in events)
        yield Link(
            "the events of the days below come to the ledger's figure",
            again == figures.ledger,
            f"{len(events)} events, {again}",
        )
