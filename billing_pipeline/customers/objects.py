"""Stripe's objects, as much of each as we read. A shape we do not expect raises ValidationError.

Since API 2025-03-31 a subscription's period is on its items, and an invoice's subscription is at
`parent.subscription_details.subscription`; older events have both at the top.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator

ORGANIZATION_KEY = "organization_id"
"""The metadata key that names an organization, on checkout sessions and subscriptions."""


def _id_of(value: Any) -> Any:
    """An id, also where the object itself was expanded in its place."""
    return value.get("id") if isinstance(value, dict) else value


class Recurring(BaseModel):
    """How a price recurs; `meter` is the id of the meter that it bills."""

    usage_type: str | None = None
    meter: str | None = None


class Price(BaseModel):
    """A price of a subscription item."""

    id: str
    recurring: Recurring | None = None


class SubscriptionItem(BaseModel):
    """An item with its price and, since 2025-03-31, its billing period (unix seconds)."""

    price: Price | None = None
    current_period_start: int | None = None
    current_period_end: int | None = None


class SubscriptionItems(BaseModel):
    """The list of a subscription's items."""

    data: list[SubscriptionItem] = Field(default_factory=list)


class SubscriptionObject(BaseModel):
    """A subscription."""

    id: str
    customer: str
    status: str
    start_date: int
    ended_at: int | None = None
    canceled_at: int | None = None
    cancel_at: int | None = None
    current_period_start: int | None = None
    current_period_end: int | None = None
    items: SubscriptionItems = Field(default_factory=SubscriptionItems)
    metadata: dict[str, str] = Field(default_factory=dict)

    _customer = field_validator("customer", mode="before")(_id_of)

    @property
    def end(self) -> int | None:
        """When it ended, or is to end."""
        if self.status == "canceled":
            return self.ended_at or self.canceled_at
        return self.ended_at or self.cancel_at

    @property
    def periods(self) -> set[tuple[int, int]]:
        """The billing periods that it names: [start, end)."""
        named = [(self.current_period_start, self.current_period_end)]
        named += [(i.current_period_start, i.current_period_end) for i in self.items.data]
        return {(start, end) for start, end in named if start and end and start < end}

    @property
    def plan(self) -> str:
        """The ids of its prices."""
        return ", ".join(sorted(item.price.id for item in self.items.data if item.price))

    @property
    def meters(self) -> frozenset[str] | None:
        """The meters that its prices bill; None where its items do not tell."""
        recurring = [i.price.recurring for i in self.items.data if i.price and i.price.recurring]
        if len(recurring) < len(self.items.data) or not recurring:
            return None
        if any(r.meter is None and r.usage_type != "licensed" for r in recurring):
            return None
        return frozenset(r.meter for r in recurring if r.meter is not None)


class InvoiceObject(BaseModel):
    """An invoice. `period_start` and `period_end` bound the usage that it bills."""

    id: str
    customer: str
    status: str
    billing_reason: str | None = None
    period_start: int
    period_end: int
    attempt_count: int = 0
    automatically_finalizes_at: int | None = None
    subscription: str | None = None
    parent: dict[str, Any] | None = None

    _ids = field_validator("customer", "subscription", mode="before")(_id_of)

    @property
    def subscription_id(self) -> str | None:
        """The subscription that it bills, None for an invoice without one."""
        details = (self.parent or {}).get("subscription_details") or {}
        found = _id_of(details.get("subscription")) or self.subscription
        return None if found is None else str(found)


class CheckoutObject(BaseModel):
    """A completed checkout session, where an organization becomes a customer."""

    id: str
    customer: str | None = None
    client_reference_id: str | None = None
    metadata: dict[str, str] | None = None

    _customer = field_validator("customer", mode="before")(_id_of)

    @property
    def organization_id(self) -> str | None:
        """Whom it is for. Raises ValueError when its two places name different ones."""
        named = {self.client_reference_id, (self.metadata or {}).get(ORGANIZATION_KEY)} - {None, ""}
        if len(named) > 1:
            raise ValueError("client_reference_id and metadata name two organizations")
        return next(iter(named), None)


class CustomerObject(BaseModel):
    """A customer, as far as its deletion is concerned."""

    id: str
