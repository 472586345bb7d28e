"""Under which eligibility a customer's usage may be reported: its subscriptions, and what is closed.

| subscription status                          | usage                             |
| -------------------------------------------- | --------------------------------- |
| active, trialing, past_due, unpaid           | reported                            |
| canceled                                     | reported up to its end, then held   |
| incomplete, incomplete_expired, paused       | held                              |
| any other                                    | held: never read as active        |
| none known                                   | reported: a meter needs none        |

A customer with several subscriptions is reported for as long as one of them allows it. All
instants are unix seconds; what lies at an end belongs to what follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from billing_pipeline.rules.model import HoldReason


class Policy(StrEnum):
    """What a subscription's status means for usage."""

    REPORT = "state"
    UNTIL_END = "until_end"
    HOLD = "hold"


DEFAULT_POLICY: Mapping[str, Policy] = {
    "active": Policy.REPORT,
    "trialing": Policy.REPORT,
    "past_due": Policy.REPORT,
    "unpaid": Policy.REPORT,
    "canceled": Policy.UNTIL_END,
    "incomplete": Policy.HOLD,
    "incomplete_expired": Policy.HOLD,
    "paused": Policy.HOLD,
}
"""The policy in one place; BILLING_SUBSCRIPTION_POLICY changes single lines of it."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as far as it decides what may be reported.

    `policy` is None for a status that we do not know. `end` is when it ended or is to end,
    `meters` the ids of the meters that its prices bill: None where that is not known, so that
    it may be any.
    """

    id: str
    policy: Policy | None
    start: int
    end: int | None = None
    meters: frozenset[str] | None = None

    def bills(self, meter_id: str | None) -> bool:
        """Whether this subscription can bill usage of a meter."""
        return self.meters is None or meter_id in self.meters

    def allows(self, timestamp: int, *, from_start: bool) -> bool:
        """Whether usage of this instant may be reported under this subscription alone.

        `from_start`: only from its start on, because an earlier subscription had ended.
        """
        if self.policy not in (Policy.REPORT, Policy.UNTIL_END):
            return False
        if self.policy is Policy.UNTIL_END and self.end is None:
            return False
        begun = timestamp >= self.start or not from_start
        return begun and (self.end is None or timestamp < self.end)


@dataclass(frozen=True, slots=True)
class Period:
    """A billing period of a subscription. `final`: its invoice is, and bills no more."""

    subscription: str
    start: int
    end: int
    final: bool = False

    def covers(self, timestamp: int) -> bool:
        """Whether an event stamped so belongs to this period."""
        return self.start <= timestamp < self.end


@dataclass(frozen=True, slots=True)
class Eligibility:
    """All that is known of one customer's subscriptions and their periods."""

    subscriptions: tuple[Subscription, ...] = ()
    periods: tuple[Period, ...] = ()
    deleted: bool = False

    def hold_reason(self, meter_id: str | None, timestamp: int) -> HoldReason | None:
        """Why usage stamped so may not be reported to this meter, None where it may."""
        if self.deleted:
            return HoldReason.CUSTOMER_DELETED
        relevant = [s for s in self.subscriptions if s.bills(meter_id)]
        if not relevant:
            return None
        if self._closed(relevant, timestamp):
            return HoldReason.PERIOD_CLOSED
        ended = [s.end for s in relevant if s.policy is Policy.UNTIL_END and s.end is not None]
        after_an_end = any(timestamp >= end for end in ended)
        if any(s.allows(timestamp, from_start=after_an_end) for s in relevant):
            return None
        newest = max(relevant, key=lambda s: (s.start, s.id))
        if newest.policy is None:
            return HoldReason.SUBSCRIPTION_UNKNOWN
        if newest.policy is Policy.HOLD:
            return HoldReason.SUBSCRIPTION_INACTIVE
        return HoldReason.SUBSCRIPTION_ENDED

    def _closed(self, relevant: Sequence[Subscription], timestamp: int) -> bool:
        """Whether every period that could still bill this instant has a final invoice."""
        ends = {s.id: s.end for s in relevant}
        covering = [p for p in self.periods if p.subscription in ends and p.covers(timestamp)]
        final = {p.subscription for p in covering if p.final}
        # A period that its subscription did not live to see the end of bills nothing after that.
        covering = [
            p
            for p in covering
            if p.final or (end := ends[p.subscription]) is None or timestamp < end
        ]
        return bool(final) and all(p.subscription in final for p in covering)

    def boundaries(self, meter_id: str | None, start: int, end: int) -> list[int]:
        """The instants strictly inside (start, end) at which a period or subscription ends."""
        relevant = {s.id: s for s in self.subscriptions if s.bills(meter_id)}
        instants = {s.end for s in relevant.values() if s.end is not None}
        for period in self.periods:
            if period.subscription in relevant:
                instants |= {period.start, period.end}
        return sorted(instant for instant in instants if start < instant < end)


ANYTHING_GOES = Eligibility()
"""Nothing is known: usage of a mapped customer is reported."""


@dataclass(frozen=True)
class Payers:
    """Who pays, as known today: customer by organization, eligibility by customer.

    `undecided` organizations have several customers by Stripe's events, and none by a person.
    """

    customers: Mapping[str, str] = field(default_factory=dict)
    undecided: frozenset[str] = frozenset()
    eligibility: Mapping[str, Eligibility] = field(default_factory=dict)

    @cached_property
    def mapping_id(self) -> str:
        """The mapping as an id: with another one, days may have to be reported that were not."""
        content = json.dumps([sorted(self.customers.items()), sorted(self.undecided)])
        return hashlib.sha256(content.encode()).hexdigest()

    def eligibility_of(self, customer: str | None) -> Eligibility:
        """A customer's eligibility; those of one without any known subscription allow everything."""
        return self.eligibility.get(customer or "", ANYTHING_GOES)
