"""Verification: a 200 is not billing. Stripe's own summaries must agree with the ledger."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import stripe
from aiolimiter import AsyncLimiter

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger.evidence import (
    Checked,
    ExpectedFigure,
    doubt_zeros_after,
    expected_figures,
    record_checks,
)
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.rules.agreement import (
    judge,
    missing_from,
)
from billing_pipeline.rules.model import (
    Formula,
    Meter,
)
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.delivery import Clock, Progress
from billing_pipeline.stripe_api.retrying import backoff
from billing_pipeline.stripe_api.summaries import (
    AtZero,
    daily_figures,
    figure_between,
    figure_of_a_zero,
)

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
    """Not compared yet: today's share of the month's reads did not reach so far."""

    @property
    def share(self) -> float:
        """How much of what was to be compared agrees, between 0 and 1; of nothing, 1."""
        wanted = self.agreed + self.lagging + len(self.mismatched) + self.postponed
        return self.agreed / wanted if wanted else 1.0


def verify(
    gateway: StripeGateway,
    ledger: Ledger,
    meters: Sequence[Meter],
    days: Sequence[date],
    clock: Clock,
    *,
    wait_seconds: float = 0.0,
    everything: bool = False,
    progress: Progress | None = None,
) -> VerificationReport:
    """Compare the ledger with Stripe for these days, one call per customer and meter.

    Only what was accepted and not verified yet is compared, unless `everything` is asked for.
    What lags is asked again for up to `wait_seconds`; then it stays `accepted`.

    Reads have a budget. What changed is compared first, with all that is left of the month's; then
    what waits longest, with today's share; the rest stays `accepted` until another day. Whoever
    asks for `everything` may use what is left of the month.
    """
    by_name = {meter.event_name: meter for meter in meters}
    replacing = {name: meter.replaces for name, meter in by_name.items()}
    report = VerificationReport()
    expected = ledger.read(expected_figures, days, replacing, unverified_only=not everything)
    while expected:
        with Reads(ledger, gateway.reads_a_month, clock) as reads:
            kept = _affordable(expected, reads, clock(), report, everything=everything)
            doubted = asyncio.run(
                _verify(
                    gateway, reads, ledger, by_name, kept, report, clock, wait_seconds, progress
                )
            )
        # Zeros that follow what was verified now; they follow no further ones.
        expected = ledger.read(expected_figures, sorted(doubted), replacing, unverified_only=True)
    return report


def _affordable(
    expected: Sequence[ExpectedFigure],
    reads: Reads,
    now: datetime,
    report: VerificationReport,
    *,
    everything: bool,
) -> list[ExpectedFigure]:
    """What today's reads are enough for: all days of a customer and meter, or none."""
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
    """Changes first, then what waits longest; of the same age, other ones each day."""
    chance = hashlib.sha256(f"{now.date()} {key}".encode()).digest()
    oldest = min((min(each.pending_since, default=now) for each in group), default=now)
    return not any(each.has_changed for each in group), oldest.date(), chance


async def _verify(
    gateway: StripeGateway,
    reads: Reads,
    ledger: Ledger,
    meters: Mapping[str, Meter],
    expected: list[ExpectedFigure],
    report: VerificationReport,
    clock: Clock,
    wait_seconds: float,
    progress: Progress | None,
) -> set[date]:
    """Look until nothing lags or the time is over; returns days to be looked at once more."""
    doubted: set[date] = set()
    loop = asyncio.get_running_loop()
    give_up = loop.time() + wait_seconds
    total = len(expected)
    attempt = 0
    async with gateway.client() as client:
        while True:
            checks = await _look(gateway, reads, client, ledger, meters, expected, clock, report)
            ledger.write(record_checks, checks, clock())
            new = [check for check in checks if _is_a_new_value(check, meters)]
            doubted |= ledger.write(doubt_zeros_after, new, clock())
            report.agreed += sum(check.outcome == "agrees" for check in checks)
            report.mismatched += [check for check in checks if check.outcome == "mismatch"]
            expected = [check.figure for check in checks if check.outcome == "lagging"]
            report.lagging = len(expected)
            if progress is not None:
                progress(total - report.lagging, total)
            attempt += 1
            pause = backoff(attempt, "summaries")
            if not expected or loop.time() + pause > give_up:
                return doubted
            await asyncio.sleep(pause)


def _is_a_new_value(check: Checked, meters: Mapping[str, Meter]) -> bool:
    """Whether a value has come before the zeros that follow it on a `last` meter."""
    expected = check.figure
    newly = check.outcome == "agrees" and bool(expected.pending) and expected.expected != 0
    return newly and meters[expected.event_name].formula is Formula.LAST


async def _look(
    gateway: StripeGateway,
    reads: Reads,
    client: stripe.StripeClient,
    ledger: Ledger,
    meters: Mapping[str, Meter],
    expected: list[ExpectedFigure],
    clock: Clock,
    report: VerificationReport,
) -> list[Checked]:
    spans: dict[tuple[str, str], list[ExpectedFigure]] = defaultdict(list)
    for each in expected:
        spans[each.customer, each.event_name].append(each)
    limiter = AsyncLimiter(max(1.0, gateway.calls_per_second * 0.05), 0.05)
    gate = asyncio.Semaphore(AT_ONCE)

    async def zero(each: ExpectedFigure, meter: Meter) -> AtZero | None:
        if each.expected or not each.pending:
            return None
        await limiter.acquire()
        return await figure_of_a_zero(
            client, reads, ledger, meter, each.customer, each.timestamp, clock()
        )

    async def of_a_segment(each: ExpectedFigure, meter: Meter) -> float | None:
        if each.segment is None:
            return None
        await limiter.acquire()
        return await figure_between(
            client, reads, str(meter.meter_id), each.customer, *each.segment
        )

    async def one(customer: str, meter: Meter, span: list[ExpectedFigure]) -> list[Checked]:
        days = [each.usage_day for each in span]
        async with gate:
            await limiter.acquire()
            try:
                figures = await daily_figures(
                    client, reads, str(meter.meter_id), customer, min(days), max(days)
                )
                segments = [await of_a_segment(each, meter) for each in span]
                zeros = [await zero(each, meter) for each in span]
            except StripeUnreachable as error:
                report.unread.append(str(error))
                return []
            except stripe.PermissionError:
                report.unread.append("this key may not read billing meters' event summaries")
                return []
            except stripe.InvalidRequestError as error:
                # A customer Stripe does not know has no usage there: nothing it could agree to.
                report.unread.append(f"summaries of {customer}: {error.user_message}")
                code, gone = str(error.code or "refused"), error.code == "resource_missing"
                return [
                    Checked(each, code, "mismatch", each.pending_ids if gone else (), gone)
                    for each in span
                ]
        return [
            _check(
                each,
                meter,
                figures.get(each.usage_day) if segment is None else segment,
                at_zero,
                clock,
            )
            for each, segment, at_zero in zip(span, segments, zeros, strict=True)
        ]

    looks = [one(customer, meters[name], span) for (customer, name), span in spans.items()]
    return [check for checks in await asyncio.gather(*looks) for check in checks]


def _check(
    each: ExpectedFigure,
    meter: Meter,
    shown: float | None,
    at_zero: AtZero | None,
    clock: Clock,
) -> Checked:
    certain = each.certain
    if at_zero is not None:
        certain, shown = at_zero.before, at_zero.figure
        # A value that was not shown in time is there after all, and the zero is missing.
        certain = next((value for value in at_zero.perhaps if value and value == shown), certain)
        if shown is None:
            return Checked(each, "0", "lagging")
    reported = shown or 0.0
    outcome = judge(
        each.expected,
        certain,
        each.pending,
        meter.replaces,
        reported,
        each.last_accepted_at,
        clock(),
    )
    lost = missing_from(certain, each.pending, meter.replaces, shown)
    missing = tuple(each.pending_ids[n] for n in lost or ())
    return Checked(each, f"{reported:.15g}", outcome, missing)
