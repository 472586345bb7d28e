"""Reading Stripe's own figures: event summaries by UTC day, a whole span in one call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import stripe

from billing_pipeline.ledger.evidence import newest_before
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.rules.model import (
    Formula,
    Meter,
)
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.retrying import reading
from billing_pipeline.stripe_facts import LAG_ALLOWANCE, PAGE, SUMMARY_GRANULARITY_SECONDS


def minutes_of(start: int, end: int) -> tuple[int, int]:
    """The whole minutes that [start, end) lies in: what a summary can be asked for."""
    return start // SUMMARY_GRANULARITY_SECONDS * SUMMARY_GRANULARITY_SECONDS, -(
        -end // SUMMARY_GRANULARITY_SECONDS
    ) * SUMMARY_GRANULARITY_SECONDS


async def daily_figures(
    client: stripe.StripeClient,
    reads: Reads,
    meter_id: str,
    customer: str,
    first: date,
    last: date,
) -> dict[date, float]:
    """Stripe's aggregated value of each UTC day from `first` to `last`; days without are 0.

    One call for up to 100 days (a page of Stripe's), because reads have a monthly budget.
    Raises StripeUnreachable, and the SDK's InvalidRequestError for an unknown customer.
    """

    async def every() -> list[Any]:
        reads.spend()
        page = await client.v1.billing.meters.event_summaries.list_async(
            meter_id,
            {
                "customer": customer,
                "start_time": day_start(first),
                "end_time": day_end(last),
                "value_grouping_window": "day",
                "limit": PAGE,
            },
        )
        return [summary async for summary in page.auto_paging_iter()]

    figures: dict[date, float] = {}
    for summary in await reading(every, f"summaries of {customer}"):
        day = datetime.fromtimestamp(summary.start_time, UTC).date()
        figures[day] = summary.aggregated_value
    return figures


async def figure_between(
    client: stripe.StripeClient, reads: Reads, meter_id: str, customer: str, start: int, end: int
) -> float:
    """Stripe's one aggregated value of the minutes in which [start, end) lies; none is 0.

    Raises as `daily_figures` does.
    """
    first, last = minutes_of(start, end)

    async def once() -> Any:
        reads.spend()
        return await client.v1.billing.meters.event_summaries.list_async(
            meter_id, {"customer": customer, "start_time": first, "end_time": last, "limit": 1}
        )

    page = await reading(once, f"the summary of {customer}")
    return float(page.data[0].aggregated_value) if page.data else 0.0


@dataclass(frozen=True, slots=True)
class AtZero:
    """The value before a zero, and Stripe's figure since: None while that may lag behind.

    `perhaps` are values between the two that Stripe may hold or not: one that is not shown in time
    may be lost.
    """

    before: int
    figure: float | None
    perhaps: tuple[int, ...] = ()


async def figure_of_a_zero(
    client: stripe.StripeClient,
    reads: Reads,
    ledger: Ledger,
    meter: Meter,
    customer: str,
    timestamp: int,
    now: datetime,
) -> AtZero | None:
    """Where a zero stamped so takes the place of another value: that value, and Stripe's figure.

    A day with a zero and a day without any event may look alike in a summary by day. Over the
    time since the value before that Stripe has shown, the figure is 0 only if the zero was counted.
    None where the meter adds up, or the value before was a zero too: then it makes no difference to
    any bill.
    """
    if meter.formula is not Formula.LAST:
        return None
    before = ledger.read(newest_before, meter.event_name, customer, timestamp)
    if before is None or before.newest == 0:
        return None
    last = before.last_accepted_at
    if last is not None and now - last <= LAG_ALLOWANCE:
        return AtZero(before.value, None, before.followed_by)
    figure = await figure_between(
        client, reads, str(meter.meter_id), customer, before.since, timestamp + 1
    )
    return AtZero(before.value, figure, before.followed_by)
