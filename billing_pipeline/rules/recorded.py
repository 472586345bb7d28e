"""what Stripe has recorded for a cell: what was accepted, less what was rejected later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from billing_pipeline.rules.model import NOT_COUNTED, SENT, Meter, RecordedEvent, State


def recorded_value(meter: Meter, recorded: Iterable[RecordedEvent]) -> int | None:
    """The value Stripe has for the cell, None when it holds nothing."""
    held = sorted((s for s in recorded if s.state in SENT), key=lambda s: s.revision)
    if not held:
        return None
    return held[-1].value if meter.replaces else sum(s.value for s in held)


def reported_customer(recorded: Sequence[RecordedEvent]) -> str | None:
    """The customer the cell belongs to: that of its first report which was not refused.

    Of a zero that was taken for not counted nobody can be sure: reported again for the same
    customer it makes no difference, beside one of another customer it might.
    """
    kept = [
        s
        for s in recorded
        if s.state is not State.REJECTED or (s.error_code == NOT_COUNTED and s.value == 0)
    ]
    return min(kept, key=lambda s: s.revision).customer if kept else None
