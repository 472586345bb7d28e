"""From what the readings prove to what an invoice bills, step by step, and why they differ.

    readings → snapshot → ledger → Stripe's summary → invoice line

A difference is explained if its causes add up to exactly its amount, or if one of them has no
amount of its own (on a meter that keeps one value, or if Stripe has not answered yet). A difference
that is not explained needs a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from billing_pipeline.rules.holds import HOLD_RULES, HoldReason
from billing_pipeline.rules.model import SENT, UNRESOLVED, Meter, RecordedEvent
from billing_pipeline.rules.recorded import recorded_value
from billing_pipeline.rules.segments import Segment


class Step(StrEnum):
    """Figures that may differ from the one before them."""

    SNAPSHOT = "snapshot"
    LEDGER = "ledger"
    STRIPE = "stripe"
    INVOICE = "invoice"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a figure differs from the one before it; `amount` in units, None: any."""

    step: Step
    text: str
    amount: int | None


@dataclass(frozen=True)
class Reconciled:
    """The figures of one billing period and meter, in units. None: there is none, or not yet.

    `ledger_in_minutes` is the ledger's figure for the whole minutes that Stripe's summary is of.
    """

    readings: int
    snapshot: int
    ledger: int
    ledger_in_minutes: int | None = None
    stripe: float | None = None
    invoiced: int | None = None
    causes: tuple[Cause, ...] = ()
    keeps_one: bool = False
    """Whether only the newest value of the period counts; else its values add up."""

    @property
    def differences(self) -> dict[Step, float]:
        """How much each figure is above the one before it, if both are known."""
        reported = self.ledger if self.ledger_in_minutes is None else self.ledger_in_minutes
        in_stripe = self.ledger if self.stripe is None else self.stripe - reported + self.ledger
        found: dict[Step, float] = {
            Step.SNAPSHOT: self.snapshot - self.readings,
            Step.LEDGER: self.ledger - self.snapshot,
        }
        if self.stripe is not None:
            found[Step.STRIPE] = self.stripe - reported
        if self.invoiced is not None:
            found[Step.INVOICE] = self.invoiced - in_stripe
        return found

    @property
    def unexplained(self) -> list[Step]:
        """The steps with a difference that is not explained."""
        return [
            step for step, amount in self.differences.items() if not self._explains(step, amount)
        ]

    def _explains(self, step: Step, amount: float) -> bool:
        causes = [cause.amount for cause in self.causes if cause.step is step]
        if amount == 0 or None in causes:
            return True
        return amount == sum(each for each in causes if each is not None)


@dataclass(frozen=True, slots=True)
class SegmentHold:
    """Usage on hold: its reason, where the segment begins (0: the whole day), and the amount."""

    reason: HoldReason
    start: int
    value: int


@dataclass(frozen=True)
class CellFacts:
    """What is known of one segment of a cell."""

    meter: Meter
    segment: Segment
    recorded: Sequence[RecordedEvent] = ()
    holds: Sequence[SegmentHold] = ()
    adjusted: int = 0
    """What adjustments add to this segment."""
    refused: str | None = None
    """Stripe's refusal, if no later report replaced it."""
    undone: str | None = None
    """The reason for which a person undid the last report."""
    stale: str | None = None
    """Why the snapshot's value is not reported: the day is not planned yet, or not from it."""

    @property
    def target(self) -> int:
        """The value in the snapshot."""
        return self.segment.usage.of(self.meter.measure)

    @property
    def taken(self) -> list[RecordedEvent]:
        """Its events that Stripe has, by the ledger."""
        return [s for s in self.recorded if s.state in SENT and self.segment.contains(s.timestamp)]

    @property
    def reported(self) -> int:
        """What Stripe has recorded of it, by the ledger."""
        return recorded_value(self.meter, self.taken) or 0

    def causes(self) -> list[Cause]:
        """Why `reported` is not the target; empty if it is, or if nothing explains it."""
        missing = self.reported - self.target
        if not missing:
            return []
        found = list(self._certain())
        if self.meter.replaces:
            return [replace(each, amount=missing) for each in (*found, *self._rest(missing))][:1]
        return found + self._rest(missing - sum(each.amount or 0 for each in found))

    def reasons(self) -> list[Cause]:
        """Causes without amounts, where only the newest value of a period counts.

        If nothing of a segment was reported, the period keeps the value of an earlier one.
        """
        if self.taken and self.reported == self.target:
            return []
        return [replace(each, amount=None) for each in (*self._certain(), *self._rest(1))]

    def _certain(self) -> Iterable[Cause]:
        """Causes whose amounts are known."""
        if self.adjusted:
            yield _cause("by adjustments: `billing adjustments list`", self.adjusted)
        for hold in self.holds:
            if hold.start == 0 or self.segment.contains(hold.start):
                message = f"on hold: {HOLD_RULES[hold.reason].text}"
                if hold.reason is HoldReason.UNDONE and self.undone:
                    message = f"undone: {self.undone}"
                yield _cause(message, -hold.value)
        for each in self.recorded:
            if each.state in UNRESOLVED and self.segment.contains(each.timestamp):
                yield _cause(f"unresolved: revision {each.revision} is {each.state}",
                             -each.value)  # fmt: skip

    def _rest(self, amount: int) -> list[Cause]:
        """The cause of all that the certain causes do not explain."""
        if self.undone is not None:
            why: str | None = f"undone: {self.undone}"
        elif self.stale is not None:
            why = self.stale
        else:
            why = self.refused and f"refused by Stripe: {self.refused}"
        return [_cause(why, amount)] if amount and why else []


def _cause(text: str, amount: int) -> Cause:
    return Cause(Step.LEDGER, text, amount)
