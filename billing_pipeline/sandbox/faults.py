"""Faults of the sandbox. The seed, the request and its attempt decide which request fails."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Faults:
    """Probabilities from 0 to 1 per meter event request, and conditions that last."""

    rate_limit: float = 0.0
    """429; the event is not counted."""
    error_before: float = 0.0
    """500; the event is not counted. The answer is replayed for its Idempotency-Key."""
    error_after: float = 0.0
    """500 after the event was counted. The answer is replayed, too."""
    cut_before: float = 0.0
    """The connection is cut; the event is not counted."""
    cut_after: float = 0.0
    """The connection is cut after the event was counted."""
    dropped: float = 0.0
    """200, but the event is never counted. An error report follows."""
    forgotten: float = 0.0
    """The answer is not kept for its Idempotency-Key: a repeated request is executed again.
    This fault can occur together with any other."""
    slow: float = 0.0
    """The answer takes `slow_seconds`."""
    slow_seconds: float = 1.0
    latency: float = 0.0
    """Seconds that every request takes."""
    lag: float = 0.0
    """Seconds until an event appears in event summaries."""
    limit: float = 0.0
    """Meter events a second that are allowed; more get a 429. 0: no limit."""
    late_checks: float = 0.0
    """1: an unknown customer or inactive meter is not refused; an error report names it later."""
    report_after: float = 1.0
    """Seconds until an error report about usage that was accepted and not counted."""
    webhook_lost: float = 0.0
    """An event is never delivered."""
    webhook_duplicates: float = 0.0
    """An event is delivered once more, up to five times in total."""
    webhook_delay: float = 0.0
    """The longest delay of a delivery in seconds. Deliveries then arrive in any order."""

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Parse text such as "rate_limit=0.1,lag=2". Raises ValueError."""
        faults = cls()
        known = {field.name for field in fields(cls)}
        for item in filter(None, (each.strip() for each in text.split(","))):
            name, _, value = item.partition("=")
            if name not in known:
                raise ValueError(
                    f"no fault is called {name!r}; there are {', '.join(sorted(known))}"
                )
            try:
                faults = replace(faults, **{name: float(value)})
            except ValueError:
                raise ValueError(f"{name} needs a number, not {value!r}") from None
        return faults

    def forgets(self, seed: int, key: str) -> bool:
        """Whether the answer to this Idempotency-Key is not kept."""
        return random.Random(f"{seed}:forgotten:{key}").random() < self.forgotten

    def strike(self, seed: int, identifier: str, attempt: int) -> str | None:
        """The fault of this attempt; None if it succeeds."""
        chance = random.Random(f"{seed}:{identifier}:{attempt}").random()
        for name in ("rate_limit", "error_before", "error_after", "cut_before", "cut_after",
                     "dropped", "slow"):  # fmt: skip
            chance -= getattr(self, name)
            if chance < 0:
                return name
        return None
