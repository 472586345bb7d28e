"""Folding Stripe events into the read model. The result does not depend on their order of arrival.

An object's row shows its newest event; an older one never overwrites it. Stripe's times have a
resolution of one second. If two events of one second differ, neither is known to be newer, so
Stripe is asked for the object itself. Tables that only grow (learned customers, deleted customers,
periods) need no order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from billing_pipeline.customers.objects import (
    CheckoutObject,
    CustomerObject,
    InvoiceObject,
    SubscriptionObject,
)
from billing_pipeline.customers.tables import (
    billing_periods,
    deleted_customers,
    invoices,
    learned_customers,
    subscriptions,
)
from billing_pipeline.database import upsert

DRAFT, DELETED = "draft", "deleted"
"""The statuses of an invoice that bills nothing (yet). DELETED is ours: Stripe sends an event if a
draft is deleted."""


@dataclass(frozen=True, slots=True)
class Source:
    """The event that shows something: its id, and when Stripe created it."""

    event_id: str
    created: datetime


class AskStripe(Exception):
    """Only Stripe can say: two events of one second disagree about an object, or none has it."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(f"Stripe must be asked for {kind} {object_id}")
        self.kind = kind
        self.object_id = object_id


def take_checkout(connection: Connection, session: CheckoutObject, source: Source) -> bool:
    """Learn a customer from a checkout session; False if it names no organization or customer."""
    if session.organization_id is None or session.customer is None:
        return False
    _learn(connection, session.organization_id, session.customer, source)
    return True


def take_deleted_customer(connection: Connection, gone: CustomerObject, source: Source) -> None:
    """Record that a customer was deleted. A deleted customer never comes back."""
    _add(
        connection, deleted_customers, {"stripe_customer_id": gone.id, "event_id": source.event_id}
    )


def take_subscription(
    connection: Connection,
    seen: SubscriptionObject,
    source: Source,
    asked: SubscriptionObject | None = None,
) -> set[int]:
    """Fold a subscription in; `asked` is Stripe's answer if it was asked for the subscription.

    Returns the newly known period boundaries (unix seconds). Raises AskStripe if only Stripe knows
    which event is newer.
    """
    ends = set[int]()
    for start, end in seen.periods | (asked.periods if asked else set()):
        ends |= _see_period(connection, seen.id, start, end)
    known = connection.scalar(
        select(subscriptions.c.end_at).where(subscriptions.c.subscription_id == seen.id)
    )
    shown = [seen.end, None if asked is None else asked.end]
    ends |= {end for end in shown if end is not None and end != known}
    if seen.organization_id is not None:
        _learn(connection, seen.organization_id, seen.customer, source)
    _fold(
        connection,
        subscriptions,
        {"subscription_id": seen.id},
        _subscription_row(seen),
        source,
        None if asked is None else _subscription_row(asked),
    )
    return ends


def take_invoice(
    connection: Connection, seen: InvoiceObject, source: Source, asked: InvoiceObject | None = None
) -> set[int]:
    """Fold an invoice and its period in; returns and raises like `take_subscription`."""
    subscription, ends = seen.subscription_id, set[int]()
    if subscription is not None and seen.period_start < seen.period_end:
        ends = _see_period(connection, subscription, seen.period_start, seen.period_end)
    _fold(
        connection,
        invoices,
        {"invoice_id": seen.id},
        _invoice_row(seen),
        source,
        None if asked is None else _invoice_row(asked),
    )
    return ends


def knows_subscription(connection: Connection, subscription_id: str) -> bool:
    """Whether any event has shown this subscription."""
    query = select(subscriptions.c.subscription_id).where(
        subscriptions.c.subscription_id == subscription_id
    )
    return connection.execute(query).first() is not None


def _fold(
    connection: Connection,
    table: Table,
    key: dict[str, Any],
    row: dict[str, Any],
    source: Source,
    asked: dict[str, Any] | None,
) -> None:
    """Write a row if it is newer. For two events of one second, Stripe's answer wins."""
    where = [table.c[name] == value for name, value in key.items()]
    known = connection.execute(select(table).where(*where)).one_or_none()
    if known is not None and known.as_of > source.created:
        return
    if known is not None and known.as_of == source.created:
        before = {name: getattr(known, name) for name in row}
        if before == row:
            return
        drafts = [each for each in (before, row) if each["status"] == DRAFT]
        if table is invoices and len(drafts) == 1:
            # A finalized invoice is never a draft again.
            row = row if before["status"] == DRAFT else before
        elif asked is None:
            raise AskStripe(table.name, next(iter(key.values())))
        else:
            row = asked
    upsert(connection, table, key, {**row, "as_of": source.created, "event_id": source.event_id})


def _subscription_row(seen: SubscriptionObject) -> dict[str, Any]:
    return {
        "stripe_customer_id": seen.customer,
        "status": seen.status,
        "plan": seen.plan,
        "meters": None if seen.meters is None else json.dumps(sorted(seen.meters)),
        "start_at": seen.start_date,
        "end_at": seen.end,
    }


def _invoice_row(seen: InvoiceObject) -> dict[str, Any]:
    return {
        "stripe_customer_id": seen.customer,
        "subscription_id": seen.subscription_id,
        "status": seen.status,
        "billing_reason": seen.billing_reason,
        "start_at": seen.period_start,
        "end_at": seen.period_end,
        "payment_attempts": seen.attempt_count,
        "finalizes_at": seen.automatically_finalizes_at,
        "finalized_at": seen.status_transitions.finalized_at if seen.status_transitions else None,
    }


def _see_period(connection: Connection, subscription: str, start: int, end: int) -> set[int]:
    """Record a period; returns its boundaries if it is new."""
    row = {"subscription_id": subscription, "start_at": start, "end_at": end}
    return {start, end} if _add(connection, billing_periods, row) else set()


def _learn(connection: Connection, organization: str, customer: str, source: Source) -> None:
    key = {"organization_id": organization, "stripe_customer_id": customer}
    _add(
        connection,
        learned_customers,
        {**key, "learned_at": source.created, "event_id": source.event_id},
    )


def _add(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert a row unless its key exists; whether it was new. Safe beside other processes."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return bool(connection.execute(insert(table).values(row).on_conflict_do_nothing()).rowcount)
