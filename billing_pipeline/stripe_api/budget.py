"""Reading Stripe has a monthly budget; every read of a summary is taken from it first.

Stripe allows 500 reads for each transaction of an account, and 10,000 a month in any case. All
processes of one ledger share what BILLING_VERIFICATION_READS leaves them of that; nothing is
read beyond it. A tenth is kept for resolving, without which events would stay of unknown outcome.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable
from datetime import date, datetime
from typing import Self

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.ledger.reads import give_back_reads, lease_reads, reads_used

LEASE = 10
"""Reads taken from the ledger at once. What a crash leaves of them is lost for the month."""

KEPT_FOR_RESOLVING = 0.1


class ReadsUsedUp(StripeUnreachable):
    """This month's reads are used up. What waits for them is decided next month, or by a person."""


class Reads:
    """The reads of summaries that are left in this month (UTC); a context that returns the rest."""

    def __init__(self, ledger: Ledger, limit: int, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._limit = limit
        self._clock = clock
        self._leased = 0
        self._leased_on = self._today

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what was leased and not read."""
        if self._leased:
            self._ledger.write(give_back_reads, self._leased_on, self._leased)
            self._leased = 0

    def spend(self) -> None:
        """Take one read. Raises ReadsUsedUp when none is left."""
        if not self._leased:
            self._leased_on = self._today
            self._leased = self._ledger.write(lease_reads, self._leased_on, LEASE, self._limit)
        if not self._leased:
            raise ReadsUsedUp(
                f"the {self._limit} reads of this month are used up; raise "
                "BILLING_VERIFICATION_READS if Stripe allows you more, or wait for the next month"
            )
        self._leased -= 1

    @property
    def for_comparing(self) -> int:
        """What verification may use of the month's rest; the remainder is kept for resolving."""
        today = self._today
        return max(0, self._usable - self._ledger.read(reads_used, today.replace(day=1), today))

    @property
    def for_today(self) -> int:
        """What is left of today's share: an even one of what the days before have left."""
        today = self._today
        used = self._ledger.read(reads_used, today.replace(day=1), today)
        used_today = self._ledger.read(reads_used, today, today)
        days = calendar.monthrange(today.year, today.month)[1] - today.day + 1
        share = -(-max(0, self._usable - used + used_today) // days)
        return max(0, share - used_today)

    @property
    def _usable(self) -> int:
        return int(self._limit * (1 - KEPT_FOR_RESOLVING))

    @property
    def _today(self) -> date:
        return self._clock().date()
