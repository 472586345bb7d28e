"""What follows from each type of event: one small function per type, in one registry.

A handler changes the read model or the ledger within the transaction that also marks its event.
It asks nobody itself: what it needs from Stripe it names by raising AskStripe, and is called
again with the answer. What it raises otherwise stands on the event's row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from billing_pipeline.customers.objects import (
    CheckoutObject,
    CustomerObject,
    InvoiceObject,
    SubscriptionObject,
)
from billing_pipeline.customers.read_model import (
    DELETED,
    AskStripe,
    Source,
    knows_subscription,
    take_checkout,
    take_deleted_customer,
    take_invoice,
    take_subscription,
)
from billing_pipeline.ledger.account import meter_changed_at
from billing_pipeline.ledger.error_reports import ErrorReport, ReportedError, take_report
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.marks import look_again
from billing_pipeline.rules.timestamps import day_of
from billing_pipeline.stripe_api.objects import NotThere
from billing_pipeline.stripe_events.inbox import StoredEvent


@dataclass(frozen=True)
class Handling:
    """What a handler works with: its transaction, and what Stripe was asked for."""

    writer: Writer
    now: datetime
    asked: Mapping[tuple[str, str], dict[str, Any] | None] = field(default_factory=dict)
    """Stripe's objects by kind and id; None where it has none, or does not show it."""

    def answer(self, kind: str, object_id: str) -> dict[str, Any] | None:
        """What Stripe said of an object, None where it was not asked yet. Raises NotThere."""
        if (kind, object_id) in self.asked and self.asked[kind, object_id] is None:
            raise NotThere(f"Stripe does not show this key the {kind} {object_id}")
        return self.asked.get((kind, object_id))


Handler = Callable[[Handling, StoredEvent], str | None]
"""Applies an event; returns why there was nothing to apply, None when it was applied."""

HANDLERS: dict[str, Handler] = {}


def handles(*types: str) -> Callable[[Handler], Handler]:
    """Register a handler for these types of events."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(types, handler))
        return handler

    return register


@handles("checkout.session.completed")
def checkout_completed(handling: Handling, event: StoredEvent) -> str | None:
    """An organization became a customer."""
    session = CheckoutObject.model_validate(event.object)
    learned = take_checkout(handling.writer.connection, session, _source(event))
    return None if learned else "it names no organization, or has no customer"


@handles("customer.deleted")
def customer_deleted(handling: Handling, event: StoredEvent) -> str | None:
    """A customer is gone for good."""
    take_deleted_customer(
        handling.writer.connection, CustomerObject.model_validate(event.object), _source(event)
    )
    return None


@handles(
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
)
def subscription_changed(handling: Handling, event: StoredEvent) -> str | None:
    """A subscription is as the event shows it."""
    seen = SubscriptionObject.model_validate(event.object)
    answer = handling.answer("subscriptions", seen.id)
    asked = None if answer is None else SubscriptionObject.model_validate(answer)
    ends = take_subscription(handling.writer.connection, seen, _source(event), asked)
    _look_at(handling, ends)
    return None


@handles(
    "invoice.created",
    "invoice.updated",
    "invoice.finalized",
    "invoice.voided",
    "invoice.deleted",
    "invoice.marked_uncollectible",
    "invoice.payment_failed",
    "invoice.paid",
)
def invoice_changed(handling: Handling, event: StoredEvent) -> str | None:
    """An invoice is as the event shows it; once it is no draft, its period is closed."""
    seen = InvoiceObject.model_validate(event.object)
    if event.type == "invoice.deleted":
        seen = seen.model_copy(update={"status": DELETED})
    _meet_subscription(handling, seen.subscription_id, _source(event))
    answer = handling.answer("invoices", seen.id)
    asked = None if answer is None else InvoiceObject.model_validate(answer)
    ends = take_invoice(handling.writer.connection, seen, _source(event), asked)
    _look_at(handling, ends)
    return None


def _meet_subscription(handling: Handling, subscription_id: str | None, source: Source) -> None:
    """Ask for a subscription that only its invoice tells of: its own event was missed."""
    if subscription_id is None or knows_subscription(handling.writer.connection, subscription_id):
        return
    key = ("subscriptions", subscription_id)
    if key not in handling.asked:
        raise AskStripe(*key)
    found = handling.asked[key]
    if found is not None:  # without it the invoice still closes its period
        there = SubscriptionObject.model_validate(found)
        _look_at(handling, take_subscription(handling.writer.connection, there, source))


@handles("billing.meter.reactivated", "billing.meter.updated")
def meter_changed(handling: Handling, event: StoredEvent) -> str | None:
    """A meter is back, or renamed: what it refused while it was away may be sent again."""
    ours = meter_changed_at(handling.writer, str(event.object["id"]), event.created)
    return None if ours else "it is not one of our meters"


class _SampleRequest(BaseModel):
    identifier: str


class _Sample(BaseModel):
    error_message: str = ""
    request: _SampleRequest


class _ErrorType(BaseModel):
    code: str = Field(min_length=1, max_length=255)
    error_count: int = Field(ge=0, lt=2**31)
    sample_errors: list[_Sample] = Field(default_factory=list)


class _Reason(BaseModel):
    error_types: list[_ErrorType]


class _ReportData(BaseModel):
    reason: _Reason
    validation_start: AwareDatetime
    validation_end: AwareDatetime


class _Related(BaseModel):
    id: str


class _Report(BaseModel):
    data: _ReportData
    related_object: _Related | None = None


@handles("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
def meter_errors_reported(handling: Handling, event: StoredEvent) -> str | None:
    """Stripe did not count some of what it had accepted; the thin event says where to read it."""
    answer = handling.answer("thin events", event.id)
    if answer is None:
        raise AskStripe("thin events", event.id)
    report = _Report.model_validate(answer)
    errors = tuple(
        ReportedError(
            kind.code,
            kind.error_count,
            next((sample.error_message for sample in kind.sample_errors), ""),
            tuple(sample.request.identifier for sample in kind.sample_errors),
        )
        for kind in report.data.reason.error_types
    )
    take_report(
        handling.writer,
        ErrorReport(
            event.id,
            report.related_object.id if report.related_object else None,
            report.data.validation_start,
            report.data.validation_end,
            errors,
        ),
        handling.now,
    )
    return None


def _look_at(handling: Handling, instants: Collection[int]) -> None:
    """Have days of any age looked at in which a period is now known to end (unix seconds)."""
    days = {day_of(instant) for instant in instants}
    look_again(handling.writer, days, only_planned=True)


def _source(event: StoredEvent) -> Source:
    return Source(event.id, event.created)


THIN_TYPES = tuple(sorted(name for name in HANDLERS if name.startswith("v1.")))
SNAPSHOT_TYPES = tuple(sorted(name for name in HANDLERS if not name.startswith("v1.")))
"""The types that something here acts on, by style."""
