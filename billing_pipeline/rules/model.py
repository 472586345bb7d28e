"""The words of billing by meter, as frozen dataclasses. See docs/architecture.md for the eligibility."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import cached_property


class Formula(StrEnum):
    """How Stripe aggregates a meter's events over a billing period."""

    SUM = "sum"
    LAST = "last"


class Measure(StrEnum):
    """Which count of a usage snapshot feeds a meter."""

    ACTIVE_SENSORS = "active_sensors"
    READING_VOLUME = "reading_volume"


class State(StrEnum):
    """What is known about a meter event."""

    PLANNED = "planned"  # written down, never sent
    SENDING = "sending"  # committed before the request leaves; found after a crash: ambiguous
    AMBIGUOUS = "ambiguous"  # sent, outcome unknown
    ACCEPTED = "accepted"  # Stripe took it: a 200, or "already exists with this identifier"
    VERIFIED = "verified"  # and Stripe's own summary agrees
    REJECTED = "rejected"  # refused for good, at once or later
    HELD = "held"  # usage that cannot be reported yet; see Hold


UNRESOLVED = frozenset({State.PLANNED, State.SENDING, State.AMBIGUOUS})
"""States in which a cell waits: no new revision is reported before these are resolved."""

NOT_COUNTED = "not_counted"
"""Error code of an event whose outcome was unknown until Stripe's summary showed it missing."""

SENT = frozenset({State.ACCEPTED, State.VERIFIED})
"""States of events that Stripe has."""


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


HOLD_EXPLANATIONS: dict[HoldReason, str] = {
    HoldReason.NO_CUSTOMER: "no Stripe customer is known for this organization",
    HoldReason.CUSTOMER_UNDECIDED: (
        "Stripe's events name several customers for this organization: import the right one"
    ),
    HoldReason.CUSTOMER_DELETED: "its Stripe customer was deleted",
    HoldReason.SUBSCRIPTION_INACTIVE: (
        "its subscription is incomplete or paused, or its status is set to be held"
    ),
    HoldReason.SUBSCRIPTION_ENDED: "its subscription had ended by then",
    HoldReason.SUBSCRIPTION_UNKNOWN: "its subscription has a status that this version cannot read",
    HoldReason.PERIOD_CLOSED: "period closed: the invoice of its billing period is final",
    HoldReason.DAILY_WINDOW: (
        "its billing period ends inside the day, and the meter keeps one value a day (its "
        "event_time_window): the rest of the day's usage cannot be reported beside it"
    ),
    HoldReason.CUSTOMER_SHARED: (
        "several organizations share this customer, and the meter keeps one value per customer"
    ),
    HoldReason.DAY_NOT_OVER: "the usage day is not over yet",
    HoldReason.TOO_OLD: "older than 34 days: Stripe takes no event for it any more",
    HoldReason.GATE_CLOSED: (
        "gate closed: the day's counts are implausible; `billing gate list` says why"
    ),
    HoldReason.NO_ROOM_IN_DAY: "no later second is left inside the usage day",
    HoldReason.UNDONE: (
        "a run that reported it was undone: `billing run` over its day reports it again"
    ),
    HoldReason.BELOW_ZERO: (
        "an adjustment takes back more than the day has now; `billing adjustments list` shows it"
    ),
}


@dataclass(frozen=True, slots=True)
class MeterSpec:
    """A meter as we want it: its event name, its formula, and the count that feeds it."""

    event_name: str
    formula: Formula
    measure: Measure


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter as Stripe has it. `event_time_window` is None or "day"; "hour" is refused."""

    event_name: str
    formula: Formula
    measure: Measure
    event_time_window: str | None = None
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    meter_id: str | None = None
    changed_at: int | None = None
    """When Stripe last changed it (unix seconds), such as by reactivation; None: not known."""

    @property
    def replaces(self) -> bool:
        """Whether a newer event takes the place of an older one (else Stripe adds them up)."""
        return self.formula is Formula.LAST or self.event_time_window == "day"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """The smallest thing that is reported and corrected, within one ledger's account and mode."""

    usage_day: date
    organization_id: str
    event_name: str


@dataclass(frozen=True, slots=True)
class Usage:
    """One organization's counts of one usage day, exact integers."""

    active_sensors: int = 0
    reading_volume: int = 0

    def of(self, measure: Measure) -> int:
        """The count that a meter fed by `measure` states."""
        if measure is Measure.ACTIVE_SENSORS:
            return self.active_sensors
        return self.reading_volume


def usage_of(measure: Measure, count: int) -> Usage:
    """A usage of which only one count is known and asked for."""
    if measure is Measure.ACTIVE_SENSORS:
        return Usage(active_sensors=count)
    return Usage(reading_volume=count)


@dataclass(frozen=True)
class MeterEvent:
    """One report about one cell. `value` is what is sent, `target` what the cell should be.

    `timestamp` is in unix seconds, UTC, inside the usage day.
    """

    cell: Cell
    revision: int
    customer: str
    value: int
    target: int
    timestamp: int
    segment: tuple[int, int] | None = None
    """The part of the day it speaks of, [start, end) in unix seconds; None: the whole day."""

    @cached_property
    def identifier(self) -> str:
        """At most 100 characters, from the cell and the revision alone.

        The day and the revision are readable; the hash carries the rest, because organization
        ids have any length and alphabet. Identifiers live inside one Stripe account and mode,
        and a ledger speaks for exactly one, so these two need no place in it.
        """
        cell = self.cell
        content = json.dumps(
            [
                cell.event_name,
                cell.organization_id,
                cell.usage_day.isoformat(),
                self.revision,
            ],
            ensure_ascii=True,
        )
        digest = hashlib.sha256(content.encode()).hexdigest()[:40]
        return f"{cell.usage_day:%Y%m%d}-r{self.revision}-{digest}"

    def payload(self, meter: Meter) -> dict[str, str]:
        """What the event carries, under the keys that the meter itself names."""
        return {meter.customer_key: self.customer, meter.value_key: str(self.value)}

    def idempotency_key(self, meter: Meter) -> str:
        """From the identifier and the body, so that another body can never borrow this key."""
        body = json.dumps(
            [
                self.cell.event_name,
                self.identifier,
                self.timestamp,
                self.payload(meter),
            ],
            sort_keys=True,
        )
        return f"{self.identifier}-{hashlib.sha256(body.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event as the ledger remembers it, as much as planning needs."""

    revision: int
    customer: str
    value: int
    target: int
    timestamp: int
    state: State
    error_code: str | None = None
    last_attempt_at: int | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Usage that cannot be reported yet: what would be sent, and why it is not."""

    cell: Cell
    value: int
    target: int
    reason: HoldReason
    start: int = 0
    """Where the held part of a day with segments begins (unix seconds); 0: it is the whole day."""
    difference: int = 0
    """How much more the usage is than Stripe has of it and people have decided on."""

    @property
    def explanation(self) -> str:
        """The reason in words for a person."""
        return HOLD_EXPLANATIONS[self.reason]

    @property
    def is_silent(self) -> bool:
        """Whether nothing is missing yet: a zero, to be reported once the reason is gone.

        Until then it is nobody's concern; forgotten, the value of an earlier day would be the
        last one of its period. What waits at the gate a person should see all the same.
        """
        return (self.value, self.difference) == (0, 0) and self.reason != HoldReason.GATE_CLOSED


@dataclass(frozen=True, slots=True)
class Waiting:
    """A cell whose earlier event is unresolved.

    `still_valid` where that event is planned and says just what is to be said; else the cell is planned
    again once the outcome is known. `more`: other parts of the day are to be reported after it.
    """

    cell: Cell
    target: int
    still_valid: bool = False
    more: bool = False
