"""What Stripe holds for a cell: what was accepted, less what was rejected later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from billing_pipeline.metering.vocabulary import SENT, Meter, Said, State


def standing(meter: Meter, said: Iterable[Said]) -> int | None:
    """The value Stripe holds for the cell, None when it holds nothing."""
    held = sorted((s for s in said if s.state in SENT), key=lambda s: s.revision)
    if not held:
        return None
    return held[-1].value if meter.replaces else sum(s.value for s in held)


def stated_customer(said: Sequence[Said]) -> str | None:
    """The customer the cell belongs to: that of its first statement which was not refused."""
    kept = [s for s in said if s.state is not State.REJECTED]
    return min(kept, key=lambda s: s.revision).customer if kept else None
