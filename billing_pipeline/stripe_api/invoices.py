"""Reading the lines of invoices, and Stripe's own figure of a whole billing period."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Collection
from dataclasses import dataclass, field
from typing import Any

import stripe

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.client import Progress, StripeGateway
from billing_pipeline.stripe_api.retrying import every_page, expect, reading
from billing_pipeline.stripe_api.summaries import Summaries, pace
from billing_pipeline.stripe_facts import PAGE

AT_ONCE = 20
"""Objects read side by side."""


@dataclass(frozen=True, slots=True)
class PeriodQuestion:
    """One meter of one customer over [start, end), unix seconds; `invoice` only if it is final."""

    meter_id: str
    customer: str
    start: int
    end: int
    invoice: str | None = None


@dataclass
class StripesFigures:
    """Summaries by question, and invoiced units by invoice and meter.

    `unread` has a message for everything that could not be read.
    """

    summaries: dict[PeriodQuestion, float] = field(default_factory=dict)
    invoiced: dict[str, dict[str, int]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def ask_periods(
    gateway: StripeGateway, reads: Reads, questions: Collection[PeriodQuestion], progress: Progress
) -> StripesFigures:
    """Read these periods: one summary each, and the lines of each final invoice.

    `unread` names what cannot be read. Raises ConfigurationError for a key that is refused.
    """
    return asyncio.run(_ask(gateway, reads, questions, progress))


async def _ask(
    gateway: StripeGateway, reads: Reads, questions: Collection[PeriodQuestion], progress: Progress
) -> StripesFigures:
    found, prices = StripesFigures(), dict[str, Any]()
    gate, done = asyncio.Semaphore(AT_ONCE), 0
    invoices = sorted({q.invoice for q in questions if q.invoice is not None})

    async def one(what: str, ask: Awaitable[None]) -> None:
        nonlocal done
        async with gate:
            try:
                await ask
            except StripeUnreachable as error:
                found.unread.append(str(error))
            except (stripe.InvalidRequestError, stripe.PermissionError) as error:
                found.unread.append(f"{what}: {error.user_message}")
        done += 1
        progress(done, len(questions) + len(invoices))

    async with gateway.client() as client:
        summaries = Summaries(client, reads, pace(gateway))

        async def summary(q: PeriodQuestion) -> None:
            figure = await summaries.between(q.meter_id, q.customer, q.start, q.end)
            found.summaries[q] = figure

        await asyncio.gather(*(one(f"the summary of {q.customer}", summary(q)) for q in questions))
        for invoice in invoices:  # one after the other, so that each price is read once
            await one(f"the invoice {invoice}", _lines(client, invoice, prices, found))
    return found


async def _lines(
    client: stripe.StripeClient, invoice: str, prices: dict[str, Any], found: StripesFigures
) -> None:
    """Add up an invoice's units by meter. A graduated price has a line for each of its tiers."""

    async def every() -> list[Any]:
        page = await client.v1.invoices.line_items.list_async(invoice, {"limit": PAGE})
        return await every_page(page, "line_item")

    units: dict[str, int] = defaultdict(int)
    for line in await reading(every, f"the lines of {invoice}"):
        pricing = getattr(line, "pricing", None)
        details = getattr(pricing, "price_details", None)
        if details is None:  # a line without a price: a discount, an item added by hand
            continue
        id = details.price if isinstance(details.price, str) else details.price.id
        if id not in prices:
            prices[id] = await _price(client, id)
        meter = getattr(prices[id].recurring, "meter", None)
        if meter is None:
            continue
        if getattr(prices[id], "transform_quantity", None) is not None:
            found.unread.append(f"{invoice}: the price {id} turns units into packages")
            return
        units[meter] += line.quantity or 0
    found.invoiced[invoice] = dict(units)


async def _price(client: stripe.StripeClient, id: str) -> Any:
    async def once() -> Any:
        return expect(await client.v1.prices.retrieve_async(id), "price")

    return await reading(once, f"the price {id}")
