"""The values that all rules work on, as frozen dataclasses; docs/glossary.md explains the words."""

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
    HELD = "held"  # on hold: never an event's state; the ledger's history uses it for holds


UNRESOLVED = frozenset({State.PLANNED, State.SENDING, State.AMBIGUOUS})
"""States in which a cell waits: no new revision is reported before these are resolved."""

NOT_COUNTED = "not_counted"
"""Error code of an event whose outcome was unknown until Stripe's summary showed it missing."""

SUPERSEDED = "superseded"
"""Error code of a planned event that was replaced before it was sent, because its customer, its
value or the need for it had changed."""

NOT_REFUSALS = frozenset({NOT_COUNTED, SUPERSEDED})
"""Codes of rejected events that Stripe did not refuse: the same report may be made again."""

SENT = frozenset({State.ACCEPTED, State.VERIFIED})
"""States of events that Stripe has."""


@dataclass(frozen=True, slots=True)
class MeterSpec:
    """A meter as configured: its event name, its formula, and the count that feeds it."""

    event_name: str
    formula: Formula
    measure: Measure


REPLACING_FORMULAS = frozenset({Formula.LAST})
REPLACING_WINDOWS = frozenset({"day"})
"""With one of these a meter keeps the newest value instead of adding values up."""


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
        return self.formula in REPLACING_FORMULAS or self.event_time_window in REPLACING_WINDOWS


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """The smallest thing that is reported and corrected: a meter, an organization, a usage day."""

    usage_day: date
    organization_id: str
    event_name: str


@dataclass(frozen=True, slots=True)
class Usage:
    """One organization's counts of one usage day, exact integers."""

    active_sensors: int = 0
    reading_volume: int = 0

    def of(self, measure: Measure) -> int:
        """The count that feeds a meter of this measure."""
        if measure is Measure.ACTIVE_SENSORS:
            return self.active_sensors
        return self.reading_volume


def usage_of(measure: Measure, count: int) -> Usage:
    """Usage of which only one count is known."""
    if measure is Measure.ACTIVE_SENSORS:
        return Usage(active_sensors=count)
    return Usage(reading_volume=count)


@dataclass(frozen=True)
class MeterEvent:
    """One report about a cell. `value` is what is sent, `target` what the cell should then be.

    `timestamp` is in unix seconds, UTC, inside the usage day.
    """

    cell: Cell
    revision: int
    customer: str
    value: int
    target: int
    timestamp: int
    segment: tuple[int, int] | None = None
    """The segment it is about, [start, end) in unix seconds; None: the whole day."""

    @cached_property
    def identifier(self) -> str:
        """At most 100 characters, from the cell and the revision alone.

        The day and the revision are readable; the hash carries the rest, because organization
        ids have any length and alphabet. Account and mode are not in it: identifiers are unique
        within one of them, and a ledger belongs to exactly one.
        """
        cell = self.cell
        content = json.dumps(
            [cell.event_name, cell.organization_id, cell.usage_day.isoformat(), self.revision],
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
            [self.cell.event_name, self.identifier, self.timestamp, self.payload(meter)],
            sort_keys=True,
        )
        return f"{self.identifier}-{hashlib.sha256(body.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A meter event in the ledger, with its state: as much of it as planning needs."""

    revision: int
    customer: str
    value: int
    target: int
    timestamp: int
    state: State
    error_code: str | None = None
    last_attempt_at: int | None = None
    """Unix seconds."""

    @property
    def is_refused(self) -> bool:
        """Whether Stripe refused it."""
        return self.state is State.REJECTED and self.error_code not in NOT_REFUSALS


@dataclass(frozen=True, slots=True)
class Waiting:
    """A cell that waits because an earlier event of it is unresolved.

    `still_valid`: that event is planned and is just what would be planned now; otherwise the cell
    is planned again once the outcome is known. `more`: other segments are reported after it.
    """

    cell: Cell
    target: int
    still_valid: bool = False
    more: bool = False
