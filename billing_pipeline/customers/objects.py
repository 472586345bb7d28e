"""The fields that we read of Stripe's objects. An unexpected shape raises ValidationError.

Since API version 2025-03-31, a subscription's period is on its items, and an invoice's subscription
is in `parent.subscription_details.subscription`. Older events have both at the top level.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, field_validator

ORGANIZATION_KEY = "organization_id"
"""The metadata key that names an organization, on checkout sessions and subscriptions."""


Instant = Annotated[int, Field(ge=0, lt=253_402_300_800)]
"""Unix seconds, before the year 10000."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]
"""An id of Stripe or of an organization. The tables have room for 255 characters."""

Count = Annotated[int, Field(ge=0, lt=2**31)]


def _id_of(value: Any) -> Any:
    """The id of a field that has an id, or the expanded object."""
    return value.get("id") if isinstance(value, dict) else value


_organization = TypeAdapter(Id)


def _organization_in(metadata: dict[str, Any] | None) -> str | None:
    """The organization in an object's metadata. Raises ValidationError if it is not an id."""
    named = (metadata or {}).get(ORGANIZATION_KEY)
    return _organization.validate_python(named) if named else None


class Recurring(BaseModel):
    """How a price recurs; `meter` is the id of the meter that it bills."""

    usage_type: str | None = None
    meter: Id | None = None


class Price(BaseModel):
    """A price of a subscription item."""

    id: Id
    recurring: Recurring | None = None


class SubscriptionItem(BaseModel):
    """An item with its price and, since 2025-03-31, its billing period (unix seconds)."""

    price: Price | None = None
    current_period_start: Instant | None = None
    current_period_end: Instant | None = None


class SubscriptionItems(BaseModel):
    """The list of a subscription's items. `has_more`: the event shows only some of them."""

    data: list[SubscriptionItem] = Field(default_factory=list)
    has_more: bool = False


class SubscriptionObject(BaseModel):
    """A subscription."""

    id: Id
    customer: Id
    status: Id
    start_date: Instant
    ended_at: Instant | None = None
    canceled_at: Instant | None = None
    cancel_at: Instant | None = None
    current_period_start: Instant | None = None
    current_period_end: Instant | None = None
    items: SubscriptionItems = Field(default_factory=SubscriptionItems)
    metadata: dict[str, Any] | None = None

    _customer = field_validator("customer", mode="before")(_id_of)

    @property
    def organization_id(self) -> str | None:
        """The organization in its metadata, if any."""
        return _organization_in(self.metadata)

    @property
    def end(self) -> int | None:
        """When it ended, or will end."""
        if self.status == "canceled":
            return self.ended_at or self.canceled_at
        return self.ended_at or self.cancel_at

    @property
    def periods(self) -> set[tuple[int, int]]:
        """The billing periods in it, as [start, end)."""
        named = [(self.current_period_start, self.current_period_end)]
        named += [(i.current_period_start, i.current_period_end) for i in self.items.data]
        return {(start, end) for start, end in named if start and end and start < end}

    @property
    def plan(self) -> str:
        """The ids of its prices."""
        return ", ".join(sorted(item.price.id for item in self.items.data if item.price))

    @property
    def meters(self) -> frozenset[str] | None:
        """The meters that its prices bill; None if its items do not show that."""
        if self.items.has_more:
            return None
        recurring = [i.price.recurring for i in self.items.data if i.price and i.price.recurring]
        if len(recurring) < len(self.items.data) or not recurring:
            return None
        if any(r.meter is None and r.usage_type != "licensed" for r in recurring):
            return None
        return frozenset(r.meter for r in recurring if r.meter is not None)


class StatusTransitions(BaseModel):
    """When an invoice changed its status."""

    finalized_at: Instant | None = None


class InvoiceObject(BaseModel):
    """An invoice. It bills the usage from `period_start` to `period_end`."""

    id: Id
    customer: Id
    status: Id
    billing_reason: Id | None = None
    period_start: Instant
    period_end: Instant
    attempt_count: Count = 0
    automatically_finalizes_at: Instant | None = None
    status_transitions: StatusTransitions | None = None
    subscription: Id | None = None
    parent: dict[str, Any] | None = None

    _ids = field_validator("customer", "subscription", mode="before")(_id_of)

    @property
    def subscription_id(self) -> str | None:
        """The subscription that it bills; None for an invoice without one."""
        details = (self.parent or {}).get("subscription_details") or {}
        found = _id_of(details.get("subscription")) or self.subscription
        return None if found is None else str(found)


class CheckoutObject(BaseModel):
    """A completed checkout session: an organization becomes a customer."""

    id: Id
    customer: Id | None = None
    client_reference_id: Id | None = None
    metadata: dict[str, Any] | None = None

    _customer = field_validator("customer", mode="before")(_id_of)

    @field_validator("client_reference_id", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None

    @property
    def organization_id(self) -> str | None:
        """The organization in it. Raises ValueError if its two fields name different ones."""
        named = {self.client_reference_id, _organization_in(self.metadata)} - {None}
        if len(named) > 1:
            raise ValueError("client_reference_id and metadata name two organizations")
        return next(iter(named), None)


class CustomerObject(BaseModel):
    """A deleted customer."""

    id: Id
