"""Adjustments: what a person decides about usage that its own period no longer accepts.

Adjustments are double entries. The amount leaves the closed cell with the opposite sign, so that
nothing is missing there any more. An approved amount enters cells of the current period, where it
is reported. The entries of an approved adjustment add up to zero. Those of a dismissed one do not:
the rest was written off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from billing_pipeline.rules.model import Cell
from billing_pipeline.rules.segments import Segment


@dataclass(frozen=True, slots=True)
class Entry:
    """One side of an adjustment: `amount` is added to the cell's segment that contains `at`
    (unix seconds). It may be negative."""

    cell: Cell
    at: int
    amount: int


def adjusted_by(entries: Iterable[Entry], segment: Segment) -> int:
    """How much adjustments add to a segment."""
    return sum(entry.amount for entry in entries if segment.contains(entry.at))


def allocate(amount: int, places: Iterable[tuple[Cell, int, int]]) -> list[Entry] | None:
    """Where an approved amount goes, given (cell, instant, units reported there) by preference.

    A positive amount goes to the first place. A negative one is taken from where there are units,
    never below zero; None if there are not enough.
    """
    left, entries = amount, []
    for cell, at, units in places:
        taken = left if left > 0 else max(left, -units)
        if taken:
            entries.append(Entry(cell, at, taken))
        left -= taken
        if not left:
            return entries
    return None
