"""Reading Stripe has a monthly budget; every read of a summary is taken from it first.

Stripe allows 500 reads for each transaction of an account, and 10,000 a month in any case. All
processes of one ledger share what BILLING_VERIFICATION_READS leaves them of that; nothing is
read beyond it. A tenth is kept for settling, without which events would stay of unknown outcome.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable
from datetime import datetime

from billing_pipeline.ledger import Ledger
from billing_pipeline.stripe_meters.retrying import StripeUnreachable

LEASE = 10
"""Reads taken from the ledger at once. What a crash leaves of them is lost for the month."""

KEPT_FOR_SETTLING = 0.1


class ReadsUsedUp(StripeUnreachable):
    """This month's reads are used up. What waits for them is decided next month, or by a person."""


class Reads:
    """The reads of summaries that are left in this month (UTC)."""

    def __init__(self, ledger: Ledger, limit: int, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._limit = limit
        self._clock = clock
        self._leased = 0

    def spend(self) -> None:
        """Take one read. Raises ReadsUsedUp when none is left."""
        if not self._leased:
            self._leased = self._ledger.lease_reads(self._month, LEASE, self._limit)
        if not self._leased:
            raise ReadsUsedUp(
                f"the {self._limit} reads of this month are used up (BILLING_VERIFICATION_READS)"
            )
        self._leased -= 1

    def give_back(self) -> None:
        """Give back what was leased and not read."""
        if self._leased:
            self._ledger.give_back_reads(self._month, self._leased)
            self._leased = 0

    @property
    def for_comparing(self) -> int:
        """What verification may use of the month's rest; the remainder is kept for settling."""
        used = self._ledger.reads_used(self._month)
        return max(0, int(self._limit * (1 - KEPT_FOR_SETTLING)) - used)

    @property
    def for_today(self) -> int:
        """An even share of that for each day left in the month, today included."""
        now = self._clock()
        days = calendar.monthrange(now.year, now.month)[1] - now.day + 1
        return -(-self.for_comparing // days)

    @property
    def _month(self) -> str:
        return f"{self._clock():%Y-%m}"
