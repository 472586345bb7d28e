"""The monthly budget of reads: each read of a summary is booked before it is made.

Stripe allows 500 reads for each transaction of an account, and 10,000 a month in any case. All
processes of one ledger share the number in BILLING_VERIFICATION_READS and never read more. A tenth
is reserved for resolving events, because without it their outcome would stay unknown.
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
"""Reads booked in the ledger at once. A crash loses the unused ones for the month."""

RESERVED_FOR_RESOLVING = 0.1


class ReadsUsedUp(StripeUnreachable):
    """This month's reads are used up. Whatever needs one waits for the next month."""


class Reads:
    """This month's reads (UTC). As a context, it gives booked and unused ones back at its end."""

    def __init__(self, ledger: Ledger, limit: int, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._limit = limit
        self._clock = clock
        self._leased = 0
        self._leased_on = self._today

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give back unused reads."""
        if self._leased:
            self._ledger.write(give_back_reads, self._leased_on, self._leased)
            self._leased = 0

    def spend(self) -> None:
        """Use one read. Raises ReadsUsedUp if none is left."""
        if not self._leased:
            self._leased_on = self._today
            self._leased = self._ledger.write(lease_reads, self._leased_on, LEASE, self._limit)
        if not self._leased:
            raise ReadsUsedUp(
                f"the {self._limit} reads of this month are used up.",
                "Raise BILLING_VERIFICATION_READS if Stripe allows you more, or wait for the next "
                "month.",
            )
        self._leased -= 1

    @property
    def for_comparing(self) -> int:
        """The reads left in this month for verification, without those reserved for resolving."""
        today = self._today
        return max(0, self._usable - self._ledger.read(reads_used, today.replace(day=1), today))

    @property
    def for_today(self) -> int:
        """The reads left of today's share: an equal share for each remaining day of the month."""
        today = self._today
        used = self._ledger.read(reads_used, today.replace(day=1), today)
        used_today = self._ledger.read(reads_used, today, today)
        days = calendar.monthrange(today.year, today.month)[1] - today.day + 1
        share = -(-max(0, self._usable - used + used_today) // days)
        return max(0, share - used_today)

    @property
    def _usable(self) -> int:
        return int(self._limit * (1 - RESERVED_FOR_RESOLVING))

    @property
    def _today(self) -> date:
        return self._clock().date()
