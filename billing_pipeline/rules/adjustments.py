"""Carry-forward: usage that its own period no longer accepts, resolved by a person's decision.

Kept as double entries. What is carried out of a closed cell is entered there with the opposite
sign, so that nothing is owed there any more; what was approved is entered in cells of the
current period, where it is reported. The entries of an approved adjustment add up to zero; those
of a dismissed one do not, and that is what was written off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from billing_pipeline.rules.model import Cell, HoldReason
from billing_pipeline.rules.segments import Segment

DECIDED_BY_PEOPLE = frozenset(
    {
        HoldReason.PERIOD_CLOSED,
        HoldReason.TOO_OLD,
        HoldReason.NO_ROOM_IN_DAY,
        HoldReason.DAILY_WINDOW,
    }
)
"""Holds that nothing lifts by itself: a person decides what becomes of the amount."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One side of an adjustment: the part of the cell that holds the instant `at` (unix seconds)
    counts `amount` more, or less."""

    cell: Cell
    at: int
    amount: int


def adjusted_by(entries: Iterable[Entry], segment: Segment) -> int:
    """What adjustments add to a segment."""
    return sum(entry.amount for entry in entries if segment.holds(entry.at))


def allocate(amount: int, context: Iterable[tuple[Cell, int, int]]) -> list[Entry] | None:
    """Where an approved amount goes, given (cell, instant, units reported there) by preference.

    More units go to the first. Fewer units are taken where there are some, never below zero;
    None: there are not enough.
    """
    left, entries = amount, []
    for cell, at, units in context:
        segment = left if left > 0 else max(left, -units)
        if segment:
            entries.append(Entry(cell, at, segment))
        left -= segment
        if not left:
            return entries
    return None
