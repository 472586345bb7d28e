"""Usage on hold: what would be reported, why it is not, who can lift the hold, and how.

`HOLD_RULES` is the only table of hold reasons. Texts, advice, the amounts that people decide about
and the SQL that selects them all come from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from billing_pipeline.rules.model import Cell


class HoldReason(StrEnum):
    """Why usage cannot be reported yet."""

    NO_CUSTOMER = "no_customer"
    CUSTOMER_UNDECIDED = "customer_undecided"
    CUSTOMER_SHARED = "customer_shared"
    CUSTOMER_DELETED = "customer_deleted"
    SUBSCRIPTION_INACTIVE = "subscription_inactive"
    SUBSCRIPTION_ENDED = "subscription_ended"
    SUBSCRIPTION_UNKNOWN = "subscription_unknown"
    PERIOD_CLOSED = "period_closed"
    DAILY_WINDOW = "daily_window"
    DAY_NOT_OVER = "day_not_over"
    TOO_OLD = "too_old"
    NO_ROOM_IN_DAY = "no_room_in_day"
    GATE_CLOSED = "gate_closed"
    BELOW_ZERO = "below_zero"
    UNDONE = "undone"


class LiftedBy(StrEnum):
    """Who can lift a hold."""

    TIME = "time"
    CUSTOMER_DATA = "customer data"  # the mapping, or what Stripe says of the customer
    PERSON = "a person"
    ADJUSTMENT = "an adjustment"  # a person decides what becomes of the amount


@dataclass(frozen=True, slots=True)
class HoldRule:
    """A hold reason in words, who can lift it, and how."""

    text: str
    lifted_by: LiftedBy
    how: str


_MAP = "add the right customer to BILLING_CUSTOMERS_FILE, or run `billing customers import FILE`"
_STRIPE = "nothing to do here: the hold ends when the subscription changes in Stripe"
_ADJUST = "approve or dismiss the amount: `billing adjustments list`"

HOLD_RULES: Mapping[HoldReason, HoldRule] = {
    HoldReason.NO_CUSTOMER: HoldRule(
        "no Stripe customer is known for this organization", LiftedBy.CUSTOMER_DATA, _MAP
    ),
    HoldReason.CUSTOMER_UNDECIDED: HoldRule(
        "Stripe events name several customers for this organization", LiftedBy.CUSTOMER_DATA, _MAP
    ),
    HoldReason.CUSTOMER_SHARED: HoldRule(
        "several organizations share this customer, and the meter keeps one value per customer",
        LiftedBy.CUSTOMER_DATA,
        "map each organization to a customer of its own",
    ),
    HoldReason.CUSTOMER_DELETED: HoldRule(
        "its Stripe customer was deleted", LiftedBy.CUSTOMER_DATA, _MAP
    ),
    HoldReason.SUBSCRIPTION_INACTIVE: HoldRule(
        "its subscription is incomplete or paused, or BILLING_SUBSCRIPTION_POLICY holds its status",
        LiftedBy.CUSTOMER_DATA,
        _STRIPE,
    ),
    HoldReason.SUBSCRIPTION_ENDED: HoldRule(
        "its subscription had ended by then",
        LiftedBy.CUSTOMER_DATA,
        "nothing to do unless the organization subscribes again",
    ),
    HoldReason.SUBSCRIPTION_UNKNOWN: HoldRule(
        "its subscription has a status that this version does not know",
        LiftedBy.CUSTOMER_DATA,
        "name the status in BILLING_SUBSCRIPTION_POLICY",
    ),
    HoldReason.PERIOD_CLOSED: HoldRule(
        "period closed: the invoice of its billing period is final", LiftedBy.ADJUSTMENT, _ADJUST
    ),
    HoldReason.DAILY_WINDOW: HoldRule(
        "its billing period ends inside the day, and the meter keeps one value a day "
        "(event_time_window): the usage of the other segments cannot be reported beside it",
        LiftedBy.ADJUSTMENT,
        _ADJUST,
    ),
    HoldReason.DAY_NOT_OVER: HoldRule(
        "the usage day is not over yet", LiftedBy.TIME, "wait for the end of the UTC day"
    ),
    HoldReason.TOO_OLD: HoldRule(
        "older than 34 days: Stripe no longer accepts events for it", LiftedBy.ADJUSTMENT, _ADJUST
    ),
    HoldReason.NO_ROOM_IN_DAY: HoldRule(
        "no later second is left inside the usage day", LiftedBy.ADJUSTMENT, _ADJUST
    ),
    HoldReason.GATE_CLOSED: HoldRule(
        "gate closed: the day's counts are implausible",
        LiftedBy.PERSON,
        "fix the readings, or let the day through: `billing gate list`, `billing gate approve`",
    ),
    HoldReason.BELOW_ZERO: HoldRule(
        "an adjustment takes back more than the day has now",
        LiftedBy.PERSON,
        "look at the adjustment: `billing adjustments list`",
    ),
    HoldReason.UNDONE: HoldRule(
        "the run that reported it was undone",
        LiftedBy.PERSON,
        "report it again with `billing run` over its day",
    ),
}

NEEDS_ADJUSTMENT = frozenset(
    reason for reason, rule in HOLD_RULES.items() if rule.lifted_by is LiftedBy.ADJUSTMENT
)
"""Reasons that nothing lifts by itself: a person decides what becomes of the amount."""

ALWAYS_SHOWN = frozenset({HoldReason.GATE_CLOSED})
"""Reasons for which a hold without an amount is shown, too."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Usage that cannot be reported yet: what would be sent, and why it is not."""

    cell: Cell
    value: int
    target: int
    reason: HoldReason
    start: int = 0
    """Where the segment on hold begins (unix seconds); 0: the whole day."""
    difference: int = 0
    """How much more the usage is than what Stripe recorded and people decided about."""
    timestamp: int | None = field(default=None, compare=False)
    """When it would be stamped (unix seconds)."""

    @property
    def explanation(self) -> str:
        """The reason in words for a person."""
        return HOLD_RULES[self.reason].text

    @property
    def is_silent(self) -> bool:
        """Whether no usage is missing: a zero, to be reported once the reason is gone.

        It is kept, because the value of an earlier day would otherwise be the last one of its
        period, and it is not shown.
        """
        return (self.value, self.difference) == (0, 0) and self.reason not in ALWAYS_SHOWN
