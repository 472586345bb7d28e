"""Simulated readings: the rows of files, and the usage that they prove.

Usage is computed with sets, row by row, and not as the pipeline computes it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import NamedTuple

from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.usage.activity import CountedDay
from billing_pipeline.usage.snapshot import OrganizationUsage, Snapshot

DAY = 86_400


class Row(NamedTuple):
    """One row of a file. Rows of one sensor at one second are one reading."""

    organization: str
    sensor: str
    at: int
    value: int


class Readings:
    """All rows by day, and the snapshots taken of them."""

    def __init__(self) -> None:
        self.rows: dict[date, list[Row]] = defaultdict(list)
        self.snapshots: dict[date, Snapshot] = {}

    # Proven usage ----------------------------------------------------------------------------

    def volume(self, organization: str, start: int, end: int) -> int:
        """The readings of an organization in [start, end), duplicates removed."""
        return len(
            {(r.sensor, r.at) for r in self._all() if r.organization == organization
             and start <= r.at < end}
        )  # fmt: skip

    def active(self, organization: str, at: int) -> int:
        """The sensors of an organization with a reading in the 24 hours before `at`."""
        return len(
            {r.sensor for r in self._all() if r.organization == organization
             and at - DAY <= r.at < at}
        )  # fmt: skip

    def organizations(self) -> set[str]:
        """Every organization with a row."""
        return {row.organization for row in self._all()}

    def _all(self) -> list[Row]:
        return [row for rows in self.rows.values() for row in rows]

    # Counted usage: a `UsageSource` ----------------------------------------------------------

    def count(self, day: date, now: datetime) -> None:
        """Take the snapshot of a day from its present rows."""
        start, end = day_start(day), day_end(day)
        usage = [
            OrganizationUsage(o, self.active(o, end), self.volume(o, start, end), 0, 0)
            for o in sorted({row.organization for row in self.rows[day]})
        ]
        id = self._id(day)
        self.snapshots[day] = Snapshot(day, id, (id,), CountedDay(day, True, id), tuple(usage), now)

    def snapshot(self, day: date) -> Snapshot | None:
        """See `UsageSource`."""
        found = self.snapshots.get(day)
        return found if found is not None and found.is_whole else None

    def snapshot_id(self, day: date) -> str | None:
        """See `UsageSource`."""
        found = self.snapshot(day)
        return None if found is None else found.snapshot_id

    def is_current(self, day: date) -> bool:
        """See `UsageSource`."""
        return self.snapshot_id(day) == self._id(day)

    def proven(self, day: date) -> dict[str, tuple[int, int]]:
        """See `UsageSource`."""
        start, end = day_start(day), day_end(day)
        return {
            o: (self.active(o, end), self.volume(o, start, end))
            for o in {row.organization for row in self.rows.get(day, [])}
        }

    def before_window(self, day: date) -> str | None:
        """See `UsageSource`."""
        return self._id(date.fromordinal(day.toordinal() - 1))

    def in_segments(
        self, day: date, segments: Mapping[str, Sequence[tuple[int, int]]]
    ) -> dict[str, list[tuple[int, int]]]:
        """See `UsageSource`."""
        zero = day_start(day)
        return {
            o: [(self.active(o, zero + e), self.volume(o, zero + s, zero + e)) for s, e in segments]
            for o, segments in segments.items()
        }

    def _id(self, day: date) -> str:
        content = repr((day, sorted(self.rows.get(day, []))))
        return hashlib.sha256(content.encode()).hexdigest()
