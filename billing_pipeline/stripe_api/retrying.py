"""Back-off with jitter, and reads that are retried and checked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import stripe

from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.stripe_api.answers import NETWORK_ERRORS, Verdict, read_error
from billing_pipeline.stripe_api.client import ForeignAnswer
from billing_pipeline.stripe_facts import MOST_PAGES

T = TypeVar("T")

FIRST_DELAY = 0.25
LONGEST_DELAY = 8.0
READ_ATTEMPTS = 4


def backoff(attempt: int, seed: str, retry_after: float | None = None) -> float:
    """Seconds to wait after the `attempt`-th try: doubling, with full jitter from `seed`."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1))
    jitter = random.Random(f"{seed}:{attempt}").uniform(longest / 4, longest)
    return max(jitter, min(retry_after or 0.0, LONGEST_DELAY))


def expect(found: T, kind: str) -> T:
    """An object, if it is of the kind that was asked for. Raises ForeignAnswer."""
    if getattr(found, "object", None) != kind:
        raise ForeignAnswer(200)
    return found


async def every_page(
    first: Any, kind: str, before_page: Callable[[], None] = lambda: None
) -> list[Any]:
    """The objects of a list, page by page; `before_page` is called before each further request.

    Raises ForeignAnswer for an answer that is no list of this kind of objects, and for a list that
    has more for ever.
    """
    found: list[Any] = []
    page = expect(first, "list")
    for _ in range(MOST_PAGES):
        found += [expect(each, kind) for each in page.data]
        if not page.has_more:
            return found
        if not page.data:
            break
        before_page()
        page = expect(await page.next_page_async(), "list")
    raise ForeignAnswer(200)


async def reading(call: Callable[[], Awaitable[T]], what: str) -> T:
    """Read from Stripe, and retry failures that may pass.

    Raises StripeUnreachable if they do not pass, ConfigurationError if the key is refused, and the
    SDK's InvalidRequestError if Stripe refuses the request itself.
    """
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return await call()
        except (stripe.StripeError, *NETWORK_ERRORS) as error:
            answer = read_error(error)
            if answer.verdict is Verdict.REFUSED:
                raise
            if answer.verdict is Verdict.DENIED:
                if isinstance(error, stripe.InvalidRequestError | stripe.PermissionError):
                    raise
                raise ConfigurationError(str(answer.message)) from None
            failure = answer
        if attempt < READ_ATTEMPTS:
            await asyncio.sleep(backoff(attempt, what, failure.retry_after))
    raise StripeUnreachable(f"{what}: {failure.message}")
