"""Reading Stripe's own figures: event summaries, many UTC days in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import stripe
from aiolimiter import AsyncLimiter

from billing_pipeline.ledger.evidence import newest_before
from billing_pipeline.rules.model import Formula, Meter
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.client import MeterAccess, StripeGateway
from billing_pipeline.stripe_api.retrying import every_page, reading
from billing_pipeline.stripe_facts import LAG_ALLOWANCE, PAGE, SUMMARY_GRANULARITY_SECONDS

SUMMARY = "billing.meter_event_summary"


def minutes_of(start: int, end: int) -> tuple[int, int]:
    """The whole minutes that contain [start, end): summaries are by minute."""
    minute = SUMMARY_GRANULARITY_SECONDS
    return start // minute * minute, math.ceil(end / minute) * minute


def pace(gateway: StripeGateway) -> AsyncLimiter:
    """A limiter for the key's rate. Its bucket of 50 ms keeps each second within the rate."""
    return AsyncLimiter(max(1.0, gateway.calls_per_second * 0.05), 0.05)


@dataclass(frozen=True)
class Summaries:
    """Stripe's figures, read with one client, at the key's rate and within the budget of reads.

    Each method raises StripeUnreachable, and the SDK's InvalidRequestError for an unknown customer.
    """

    client: stripe.StripeClient
    reads: Reads
    limiter: AsyncLimiter

    async def by_day(
        self, meter: Meter, customer: str, first: date, last: date
    ) -> dict[date, float]:
        """Stripe's value of each UTC day from `first` to `last`; days without a row are missing.

        One call for up to 100 days, because reads have a monthly budget.
        """

        async def every() -> list[Any]:
            self.reads.spend()
            await self.limiter.acquire()
            page = await self.client.v1.billing.meters.event_summaries.list_async(
                str(meter.meter_id),
                {
                    "customer": customer,
                    "start_time": day_start(first),
                    "end_time": day_end(last),
                    "value_grouping_window": "day",
                    "limit": PAGE,
                },
            )
            return await every_page(page, SUMMARY, before_page=self.reads.spend)

        rows = await reading(every, f"summaries of {customer}")
        return {datetime.fromtimestamp(r.start_time, UTC).date(): r.aggregated_value for r in rows}

    async def between(self, meter_id: str, customer: str, start: int, end: int) -> float:
        """Stripe's value of the whole minutes that contain [start, end); 0 without a row."""
        first, last = minutes_of(start, end)

        async def once() -> list[Any]:
            self.reads.spend()
            await self.limiter.acquire()
            page = await self.client.v1.billing.meters.event_summaries.list_async(
                meter_id, {"customer": customer, "start_time": first, "end_time": last, "limit": 1}
            )
            return await every_page(page, SUMMARY, before_page=self.reads.spend)

        rows = await reading(once, f"the summary of {customer}")
        return float(rows[0].aggregated_value) if rows else 0.0


@dataclass(frozen=True, slots=True)
class AtZero:
    """The value before a zero, and Stripe's figure since; None while that may lag.

    `perhaps` are values between the two that Stripe may have or not. One that is not shown in time
    may be lost.
    """

    before: int
    figure: float | None
    perhaps: tuple[int, ...] = ()


async def figure_of_a_zero(
    summaries: Summaries, access: MeterAccess, meter: Meter, customer: str, timestamp: int
) -> AtZero | None:
    """The value that a zero with this timestamp replaces, and Stripe's figure since.

    In a summary by day, a day with a zero and a day without any event may look alike. Over the time
    since the last value that Stripe has shown, the figure is 0 only if the zero was counted.
    None if the meter adds up, or if the value before was a zero too: it then changes no bill.
    """
    if meter.formula is not Formula.LAST:
        return None
    before = access.ledger.read(newest_before, meter.event_name, customer, timestamp)
    if before is None or before.newest == 0:
        return None
    last = before.last_accepted_at
    if last is not None and access.clock() - last <= LAG_ALLOWANCE:
        return AtZero(before.value, None, before.followed_by)
    figure = await summaries.between(str(meter.meter_id), customer, before.since, timestamp + 1)
    return AtZero(before.value, figure, before.followed_by)
