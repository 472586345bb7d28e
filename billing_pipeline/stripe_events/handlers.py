"""The handlers of events: one small function per type of event, in one registry.

A handler changes the read model or the ledger, in the transaction that also marks its event. It
does not call Stripe: if it needs an object, it raises AskStripe and is called again with the
answer. Any other error is stored in the event's row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
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

Answers = dict[tuple[str, str], dict[str, Any] | None]
"""Stripe's objects by kind and id; None: there is none, or this key may not read it."""


@dataclass(frozen=True)
class Handling:
    """A handler's transaction, and Stripe's answers so far."""

    writer: Writer
    now: datetime
    answers: Answers = field(default_factory=dict)

    def answer(self, kind: str, object_id: str) -> dict[str, Any] | None:
        """Stripe's object; None if it was not asked for yet. Raises NotThere."""
        if (kind, object_id) in self.answers and self.answers[kind, object_id] is None:
            raise NotThere(f"Stripe has no {kind} {object_id} that this key may read")
        return self.answers.get((kind, object_id))


Handler = Callable[[Handling, StoredEvent], str | None]
"""Applies an event; returns why there was nothing to apply, or None if it was applied."""

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
    """A customer was deleted."""
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
    """A subscription was created or changed."""
    seen = SubscriptionObject.model_validate(event.object)
    answer = handling.answer("subscriptions", seen.id)
    asked = None if answer is None else SubscriptionObject.model_validate(answer)
    _look_again(
        handling, take_subscription(handling.writer.connection, seen, _source(event), asked)
    )
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
    """An invoice was created or changed. Once it is final, its period is closed."""
    seen = InvoiceObject.model_validate(event.object)
    if event.type == "invoice.deleted":
        seen = seen.model_copy(update={"status": DELETED})
    _ensure_subscription(handling, seen.subscription_id, _source(event))
    answer = handling.answer("invoices", seen.id)
    asked = None if answer is None else InvoiceObject.model_validate(answer)
    _look_again(handling, take_invoice(handling.writer.connection, seen, _source(event), asked))
    return None


def _ensure_subscription(handling: Handling, subscription_id: str | None, source: Source) -> None:
    """Ask for a subscription that only its invoice shows: its own event was missed."""
    if subscription_id is None or knows_subscription(handling.writer.connection, subscription_id):
        return
    key = ("subscriptions", subscription_id)
    if key not in handling.answers:
        raise AskStripe(*key)
    found = handling.answers[key]
    if found is not None:  # without it the invoice still closes its period
        seen = SubscriptionObject.model_validate(found)
        _look_again(handling, take_subscription(handling.writer.connection, seen, source))


@handles("billing.meter.reactivated", "billing.meter.updated")
def meter_changed(handling: Handling, event: StoredEvent) -> str | None:
    """A meter was reactivated or renamed: usage that it refused may be sent again."""
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
    """Stripe did not count some events that it had accepted. The full event lists them."""
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


def _look_again(handling: Handling, boundaries: Collection[int]) -> None:
    """Mark the days of new period boundaries (unix seconds), of any age, to be looked at again."""
    days = {day_of(instant) for instant in boundaries}
    look_again(handling.writer, days, only_planned=True)


def _source(event: StoredEvent) -> Source:
    return Source(event.id, event.created)


THIN_TYPES = tuple(sorted(name for name in HANDLERS if name.startswith("v1.")))
SNAPSHOT_TYPES = tuple(sorted(name for name in HANDLERS if not name.startswith("v1.")))
"""The types of events that have a handler, by payload style."""
