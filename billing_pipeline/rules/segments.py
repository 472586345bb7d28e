"""Segments of a usage day: a day is split where a billing period or a subscription ends inside it.

Subscriptions begin and end at instants, not at midnight. Each segment is reported by itself, with
timestamps inside it, so that each billing period gets exactly its own readings.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from billing_pipeline.rules.model import Usage
from billing_pipeline.rules.timestamps import day_end, day_start


@dataclass(frozen=True, slots=True)
class Segment:
    """[start, end) in unix seconds within one usage day, and what was used there.

    Active sensors are those at the segment's end.
    """

    start: int
    end: int
    usage: Usage

    @property
    def is_whole_day(self) -> bool:
        """Whether no period boundary divides its day."""
        return self.end - self.start == 86_400

    def contains(self, timestamp: int) -> bool:
        """Whether an event with this timestamp (unix seconds) belongs to the segment."""
        return self.start <= timestamp < self.end


def whole_day(day: date, usage: Usage) -> Segment:
    """The only segment of a day that is not split."""
    return Segment(day_start(day), day_end(day), usage)


def segments_between(day: date, boundaries: Iterable[int]) -> list[tuple[int, int]]:
    """The segments [start, end) of a day with these period boundaries, in unix seconds."""
    inside = {instant for instant in boundaries if day_start(day) < instant < day_end(day)}
    edges = [day_start(day), *sorted(inside), day_end(day)]
    return list(itertools.pairwise(edges))
