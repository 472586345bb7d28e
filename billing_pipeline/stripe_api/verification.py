"""Verification: a 200 is not billing. Stripe's own summaries must agree with the ledger."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import stripe

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger.evidence import (
    Checked,
    ExpectedFigure,
    doubt_zeros_after,
    expected_figures,
    record_checks,
)
from billing_pipeline.rules.agreement import judge, missing_from
from billing_pipeline.rules.model import Formula, Meter
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.client import MeterAccess, Progress
from billing_pipeline.stripe_api.retrying import backoff
from billing_pipeline.stripe_api.summaries import AtZero, Summaries, figure_of_a_zero, pace

AT_ONCE = 20
"""Summaries read side by side."""


@dataclass
class VerificationReport:
    """Counts of (customer, meter, day): agreeing, still lagging, different, not readable."""

    agreed: int = 0
    lagging: int = 0
    mismatched: list[Checked] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    postponed: int = 0
    """Not compared yet: today's share of the month's reads was used up."""

    @property
    def share(self) -> float:
        """The share of figures that agree, between 0 and 1; 1 if there is nothing to compare."""
        wanted = self.agreed + self.lagging + len(self.mismatched) + self.postponed
        return self.agreed / wanted if wanted else 1.0


def verify(
    access: MeterAccess,
    days: Sequence[date],
    *,
    wait_seconds: float = 0.0,
    everything: bool = False,
    progress: Progress | None = None,
) -> VerificationReport:
    """Compare the ledger with Stripe for these days, one call per customer and meter.

    Only figures with events that are not verified yet are compared, or `everything`. A figure that
    lags is read again for up to `wait_seconds`; then its events stay `accepted`.

    Reads have a monthly budget. Figures that changed are compared first, with everything that is
    left of the month; then those that wait longest, with today's share. The others wait for another
    day. `everything` may use what is left of the month.
    """
    ledger, report = access.ledger, VerificationReport()
    expected = ledger.read(expected_figures, days, access.replacing, unverified_only=not everything)
    while expected:
        with Reads(ledger, access.gateway.reads_a_month, access.clock) as reads:
            kept = _affordable(expected, reads, access.clock(), report, everything=everything)
            verification = _Verification(access, reads, report, progress)
            asyncio.run(verification.run(kept, wait_seconds))
        # Then the zeros that follow what was verified now; nothing follows from them.
        expected = ledger.read(
            expected_figures, sorted(verification.doubted), access.replacing, unverified_only=True
        )
    return report


def _affordable(
    expected: Sequence[ExpectedFigure],
    reads: Reads,
    now: datetime,
    report: VerificationReport,
    *,
    everything: bool,
) -> list[ExpectedFigure]:
    """The figures that today's reads are enough for: all days of a customer and meter, or none."""
    groups: dict[tuple[str, str], list[ExpectedFigure]] = defaultdict(list)
    for each in expected:
        groups[each.customer, each.event_name].append(each)
    of_the_month = reads.for_comparing
    of_today = of_the_month if everything else reads.for_today
    kept: list[ExpectedFigure] = []
    spent = 0
    for _, group in sorted(groups.items(), key=lambda each: _urgency(each[0], each[1], now)):
        cost = 1 + sum(each.segment is not None or not each.expected for each in group)
        changed = any(each.has_changed for each in group)
        if spent + cost <= (of_the_month if changed else of_today):
            kept += group
            spent += cost
        else:
            report.postponed += len(group)
    return kept


def _urgency(
    key: tuple[str, str], group: Sequence[ExpectedFigure], now: datetime
) -> tuple[Any, ...]:
    """Changed figures first, then those that wait longest; equal ones in an order of the day."""
    chance = hashlib.sha256(f"{now.date()} {key}".encode()).digest()
    oldest = min((min(each.pending_since, default=now) for each in group), default=now)
    return not any(each.has_changed for each in group), oldest.date(), chance


class _Verification:
    """One comparison: reads the figures side by side, and records what they show."""

    def __init__(
        self,
        access: MeterAccess,
        reads: Reads,
        report: VerificationReport,
        progress: Progress | None,
    ) -> None:
        self.doubted: set[date] = set()
        """Days with zeros to verify again, because the value before them is verified now."""
        self._access = access
        self._reads = reads
        self._report = report
        self._progress = progress or (lambda done, total: None)
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run(self, expected: list[ExpectedFigure], wait_seconds: float) -> None:
        """Compare until nothing lags or the time is over."""
        loop = asyncio.get_running_loop()
        give_up, total, attempt = loop.time() + wait_seconds, len(expected), 0
        async with self._access.gateway.client() as client:
            summaries = Summaries(client, self._reads, pace(self._access.gateway))
            while True:
                checks = await self._compare(summaries, expected)
                self._record(checks)
                expected = [check.figure for check in checks if check.outcome == "lagging"]
                self._report.lagging = len(expected)
                self._progress(total - len(expected), total)
                attempt += 1
                pause = backoff(attempt, "summaries")
                if not expected or loop.time() + pause > give_up:
                    return
                await asyncio.sleep(pause)

    def _record(self, checks: Sequence[Checked]) -> None:
        ledger, now = self._access.ledger, self._access.clock()
        ledger.write(record_checks, checks, now)
        new_values = [check for check in checks if self._is_a_new_value(check)]
        self.doubted |= ledger.write(doubt_zeros_after, new_values, now)
        self._report.agreed += sum(check.outcome == "agrees" for check in checks)
        self._report.mismatched += [check for check in checks if check.outcome == "mismatch"]

    def _is_a_new_value(self, check: Checked) -> bool:
        """Whether a zero that follows on a `last` meter can be verified now."""
        figure = check.figure
        newly = check.outcome == "agrees" and bool(figure.pending) and figure.expected != 0
        return newly and self._access.by_name[figure.event_name].formula is Formula.LAST

    async def _compare(
        self, summaries: Summaries, expected: Sequence[ExpectedFigure]
    ) -> list[Checked]:
        by_customer: dict[tuple[str, str], list[ExpectedFigure]] = defaultdict(list)
        for each in expected:
            by_customer[each.customer, each.event_name].append(each)
        compared = await asyncio.gather(
            *(
                self._compare_one(summaries, customer, self._access.by_name[name], figures)
                for (customer, name), figures in by_customer.items()
            )
        )
        return [check for checks in compared for check in checks]

    async def _compare_one(
        self, summaries: Summaries, customer: str, meter: Meter, expected: Sequence[ExpectedFigure]
    ) -> list[Checked]:
        """Compare the days of one customer and meter."""
        days = [each.usage_day for each in expected]
        async with self._gate:
            try:
                by_day = await summaries.by_day(meter, customer, min(days), max(days))
                segments = [await _of_segment(summaries, meter, each) for each in expected]
                zeros = [await self._of_zero(summaries, meter, each) for each in expected]
            except StripeUnreachable as error:
                self._report.unread.append(str(error))
                return []
            except stripe.PermissionError:
                self._report.unread.append("this key may not read meter event summaries")
                return []
            except stripe.InvalidRequestError as error:
                return self._refused(customer, expected, error)
        return [
            self._check(
                each, meter, by_day.get(each.usage_day) if shown is None else shown, at_zero
            )
            for each, shown, at_zero in zip(expected, segments, zeros, strict=True)
        ]

    def _refused(
        self, customer: str, expected: Sequence[ExpectedFigure], error: stripe.InvalidRequestError
    ) -> list[Checked]:
        """A customer that Stripe does not know has no usage there that could agree."""
        self._report.unread.append(f"summaries of {customer}: {error.user_message}")
        code, gone = str(error.code or "refused"), error.code == "resource_missing"
        return [
            Checked(each, code, "mismatch", each.pending_ids if gone else (), gone)
            for each in expected
        ]

    async def _of_zero(
        self, summaries: Summaries, meter: Meter, each: ExpectedFigure
    ) -> AtZero | None:
        if each.expected or not each.pending:
            return None
        return await figure_of_a_zero(summaries, self._access, meter, each.customer, each.timestamp)

    def _check(
        self, each: ExpectedFigure, meter: Meter, shown: float | None, at_zero: AtZero | None
    ) -> Checked:
        certain = each.certain
        if at_zero is not None:
            certain, shown = at_zero.before, at_zero.figure
            # A value that was not shown in time is there after all, and the zero is missing.
            late = (value for value in at_zero.perhaps if value and value == shown)
            certain = next(late, certain)
            if shown is None:
                return Checked(each, "0", "lagging")
        reported = shown or 0.0
        waited = self._access.clock() - each.last_accepted_at
        outcome = judge(reported, each.expected, certain, each.pending, meter.replaces, waited)
        lost = missing_from(certain, each.pending, meter.replaces, shown)
        missing = tuple(each.pending_ids[n] for n in lost or ())
        return Checked(each, f"{reported:.15g}", outcome, missing)


async def _of_segment(summaries: Summaries, meter: Meter, each: ExpectedFigure) -> float | None:
    """Stripe's figure of a segment; None for a whole day."""
    if each.segment is None:
        return None
    return await summaries.between(str(meter.meter_id), each.customer, *each.segment)
