"""Eligibility: whether a customer's usage at an instant may be reported, and if not, why.

| subscription status                          | usage                                 |
| -------------------------------------------- | ------------------------------------- |
| active, trialing, past_due, unpaid           | reported                              |
| canceled                                     | reported up to its end, then on hold  |
| incomplete, incomplete_expired, paused       | on hold                               |
| any other                                    | on hold: never taken for active       |
| none known                                   | reported: a meter needs none          |

A customer with several subscriptions is reported for as long as one of them allows it. All
instants are unix seconds. An instant at which a period ends belongs to what follows.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from functools import cached_property

from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.timestamps import day_of


class Policy(StrEnum):
    """What a subscription's status means for usage."""

    REPORT = "report"
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
    """What is known of one customer's subscriptions and billing periods."""

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
        # A subscription that ended inside a period bills nothing after its end.
        covering = [
            p
            for p in covering
            if p.final or (end := ends[p.subscription]) is None or timestamp < end
        ]
        return bool(final) and all(p.subscription in final for p in covering)

    def boundaries(self, meter_id: str | None) -> set[int]:
        """The instants at which a period or a subscription that bills this meter ends."""
        relevant = {s.id: s for s in self.subscriptions if s.bills(meter_id)}
        instants = {s.end for s in relevant.values() if s.end is not None}
        for period in self.periods:
            if period.subscription in relevant:
                instants |= {period.start, period.end}
        return instants

    def between(self, start: int, end: int) -> str:
        """All that decides about instants in [start, end), as text to compare."""
        periods = [p for p in self.periods if p.start < end and start < p.end]
        return repr((self.deleted, self.subscriptions, periods))


NO_SUBSCRIPTION = Eligibility()
"""No subscription is known: usage of a mapped customer is reported."""


@dataclass(frozen=True)
class Payers:
    """Who pays, as known today: customer by organization, eligibility by customer.

    Stripe events name several customers for an `undecided` organization, and no person chose one.
    """

    customers: Mapping[str, str] = field(default_factory=dict)
    undecided: frozenset[str] = frozenset()
    eligibility: Mapping[str, Eligibility] = field(default_factory=dict)

    @cached_property
    def organizations_digest(self) -> str:
        """Which organizations have a customer, as a digest. Each owes `last` meters its zeros."""
        return hashlib.sha256(json.dumps(sorted(self.customers)).encode()).hexdigest()[:16]

    @cached_property
    def sharing(self) -> Mapping[str, list[str]]:
        """The organizations of each customer."""
        found: dict[str, list[str]] = defaultdict(list)
        for organization, customer in sorted(self.customers.items()):
            found[customer].append(organization)
        return found

    def eligibility_of(self, customer: str | None) -> Eligibility:
        """A customer's eligibility; without a known subscription everything may be reported."""
        return self.eligibility.get(customer or "", NO_SUBSCRIPTION)

    def boundaries(
        self, meter_ids: Iterable[str | None], days: Collection[date]
    ) -> dict[date, dict[str, set[int]]]:
        """The period boundaries inside each of these days, by customer (unix seconds).

        Customers are looked at once for all days. Days without a boundary are missing.
        """
        wanted, meters = set(days), list(meter_ids)
        found: dict[date, dict[str, set[int]]] = {}
        for customer, eligibility in self.eligibility.items():
            for instant in {i for m in meters for i in eligibility.boundaries(m)}:
                day = day_of(instant)
                if instant % 86_400 and day in wanted:
                    found.setdefault(day, {}).setdefault(customer, set()).add(instant)
        return found


NO_PAYERS = Payers()
