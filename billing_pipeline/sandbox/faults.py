"""What goes wrong, and when: decided by a seed, the request and how often it was tried."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Faults:
    """Probabilities from 0 to 1 per meter event request, and a few steady conditions."""

    rate_limit: float = 0.0
    """429, nothing counted."""
    error_before: float = 0.0
    """500, nothing counted; the answer is stored and replayed for its Idempotency-Key."""
    error_after: float = 0.0
    """500 after counting; stored and replayed too."""
    cut_before: float = 0.0
    """The connection is cut, nothing counted."""
    cut_after: float = 0.0
    """The connection is cut after counting."""
    dropped: float = 0.0
    """A 200, but the event is never counted: rejected later."""
    forgotten: float = 0.0
    """An answer is not kept for its Idempotency-Key: sent again, the request is executed again.
    It strikes beside any other fault."""
    slow: float = 0.0
    """The answer takes `slow_seconds`."""
    slow_seconds: float = 1.0
    latency: float = 0.0
    """Seconds that every request takes."""
    lag: float = 0.0
    """Seconds until an event shows in summaries."""
    limit: float = 0.0
    """Meter events a second before 429; 0 is no limit."""
    late_checks: float = 0.0
    """1: an unknown customer or an inactive meter is found out later, and told by a report."""
    report_after: float = 1.0
    """Seconds until a report tells of usage that was taken and not counted."""
    webhook_lost: float = 0.0
    """An event is never delivered."""
    webhook_duplicates: float = 0.0
    """An event is delivered once more, up to five times in all."""
    webhook_delay: float = 0.0
    """Seconds that a delivery may be late; with it the order is any."""

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read "rate_limit=0.1,lag=2". Raises ValueError naming what is wrong."""
        faults = cls()
        known = {field.name for field in fields(cls)}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, value = part.partition("=")
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
        """The fault that hits this attempt, if any: at most one."""
        chance = random.Random(f"{seed}:{identifier}:{attempt}").random()
        for name in ("rate_limit", "error_before", "error_after", "cut_before", "cut_after",
                     "dropped", "slow"):  # fmt: skip
            chance -= getattr(self, name)
            if chance < 0:
                return name
        return None
