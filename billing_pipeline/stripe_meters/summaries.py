"""Reading Stripe's own figures: event summaries by UTC day, a whole span in one call."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import stripe

from billing_pipeline.metering.timestamps import day_end, day_start
from billing_pipeline.stripe_meters.retrying import reading


async def daily_figures(
    client: stripe.StripeClient, meter_id: str, customer: str, first: date, last: date
) -> dict[date, float]:
    """Stripe's aggregated value of each UTC day from `first` to `last`; days without are 0.

    One call for up to 100 days (Stripe's page), because reads have a monthly budget.
    Raises StripeUnreachable, and the SDK's InvalidRequestError for an unknown customer.
    """

    async def every() -> list[Any]:
        page = await client.v1.billing.meters.event_summaries.list_async(
            meter_id,
            {
                "customer": customer,
                "start_time": day_start(first),
                "end_time": day_end(last),
                "value_grouping_window": "day",
                "limit": 100,
            },
        )
        return [summary async for summary in page.auto_paging_iter()]

    figures: dict[date, float] = {}
    for summary in await reading(every, f"summaries of {customer}"):
        day = datetime.fromtimestamp(summary.start_time, UTC).date()
        figures[day] = summary.aggregated_value
    return figures
