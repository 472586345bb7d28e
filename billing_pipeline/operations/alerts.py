"""Alerts: what needs a person, and the hook that it is posted to.

Alerts are read from the state of things, not from a log: nothing is missed between two looks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.request import Request, urlopen

from billing_pipeline.ledger import queries
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.periods import unbilled
from billing_pipeline.stripe_events.inbox import EventState

OLDEST_EVENT = timedelta(minutes=15)
"""A stored Stripe event that waits longer is not applied by anybody, or cannot be applied."""

TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that needs a person: its kind, how many, and what to do first."""

    kind: str
    count: int
    text: str


def alerts(context: Context) -> list[Alert]:
    """Everything that needs a person now."""
    now, ledger = context.clock(), context.ledger
    found = [
        ("rejected_events", len(ledger.read(queries.rejected)),
         "meter events that Stripe refused: `billing explain` shows each, with its reason"),
        ("mismatches", len(ledger.read(queries.checks, None, "mismatch")),
         "figures where Stripe's summary differs from the ledger: `billing verify`"),
        ("meter_errors", len(ledger.read(queries.open_reports, now)),
         "Stripe error reports that are open: the check `meter_errors` shows them"),
        ("unbilled_events", len(unbilled(context)),
         "meter events that Stripe accepted after the invoice of their period was final"),
        ("closed_usage", ledger.read(queries.amounts_to_decide),
         "amounts that can no longer be reported where they belong: `billing adjustments list`"),
        ("closed_gates", len(ledger.read(queries.days_at_gate)),
         "days that wait because their counts are implausible: `billing gate list`"),
        ("failed_events", context.inbox.counts()[EventState.FAILED],
         "Stripe events that could not be applied: `billing events list --state failed`"),
        ("contradictions", len(context.customers.known(
            context.settings.billing_customers_file).contradictions()),
         "contradictions about who pays: `billing customers list`"),
    ]  # fmt: skip
    oldest = context.inbox.oldest_waiting()
    if oldest is not None and now - oldest > OLDEST_EVENT:
        text = f"or more Stripe events wait since {oldest:%Y-%m-%d %H:%M} UTC: is {SENSOR} on?"
        found.append(("oldest_unprocessed_event", 1, text))
    return [Alert(kind, count, f"{count} {text}") for kind, count, text in found if count]


SENSOR = "stripe_event_sensor"


def post(url: str, text: str, alerts: Sequence[Alert] = ()) -> None:
    """Post to the alert hook in the form of chat services: `text`, and the alerts for machines.

    Raises OSError if the hook does not accept it.
    """
    body = {"text": text, "alerts": [{"kind": a.kind, "count": a.count} for a in alerts]}
    request = Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}, method="POST"
    )
    with urlopen(request, timeout=TIMEOUT_SECONDS):
        pass
