"""What Stripe has recorded for a cell: what it accepted, less what it rejected later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from billing_pipeline.rules.model import NOT_COUNTED, SENT, Meter, RecordedEvent, State


def recorded_value(meter: Meter, events: Iterable[RecordedEvent]) -> int | None:
    """The value that Stripe has for the cell; None if it has none."""
    sent = sorted((e for e in events if e.state in SENT), key=lambda e: e.revision)
    if not sent:
        return None
    return sent[-1].value if meter.replaces else sum(e.value for e in sent)


def reported_customer(events: Sequence[RecordedEvent]) -> str | None:
    """The customer that the cell keeps: the one of its first report that was not refused.

    A zero that counts as not counted may have been counted after all. Reported again for the same
    customer it makes no difference; for another customer it might.
    """
    kept = [
        e
        for e in events
        if e.state is not State.REJECTED or (e.error_code == NOT_COUNTED and e.value == 0)
    ]
    return min(kept, key=lambda e: e.revision).customer if kept else None
