"""Back-off with jitter, and reads that are tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stripe

from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.stripe_api.answers import NETWORK_ERRORS, Verdict, read_error

T = TypeVar("T")

FIRST_DELAY = 0.25
LONGEST_DELAY = 8.0
READ_ATTEMPTS = 4


def backoff(attempt: int, seed: str, retry_after: float | None = None) -> float:
    """Seconds to wait after the `attempt`-th try: doubling, with full jitter from `seed`."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1))
    jitter = random.Random(f"{seed}:{attempt}").uniform(longest / 4, longest)
    return max(jitter, min(retry_after or 0.0, LONGEST_DELAY))


async def reading(call: Callable[[], Awaitable[T]], what: str) -> T:
    """Read from Stripe, trying again what may pass.

    Raises StripeUnreachable when it does not pass, ConfigurationError when the key is refused,
    and the SDK's InvalidRequestError when Stripe says the request itself is wrong.
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
