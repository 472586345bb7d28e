"""The one source of usage that the operations read: snapshots, and the readings themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol

from billing_pipeline.usage.activity import load_counted, proven_by
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.segments import Counts, usage_in_segments
from billing_pipeline.usage.snapshot import Snapshot, is_current, load_snapshot, snapshot_id_of
from billing_pipeline.usage.sources.folders import Folder


class UsageSource(Protocol):
    """Where usage comes from. Every method raises DAY_ERRORS for files that cannot be read."""

    def snapshot(self, day: date) -> Snapshot | None:
        """The day's snapshot, if it was taken after the day had ended."""

    def snapshot_id(self, day: date) -> str | None:
        """The id of that snapshot."""

    def is_current(self, day: date) -> bool:
        """Whether there is one, and the readings have not changed since."""

    def proven(self, day: date) -> dict[str, Counts]:
        """Counts of the day by organization, by its present readings."""

    def before_window(self, day: date) -> str | None:
        """An id of the counts of the day before the window; None if that day was not counted."""

    def in_segments(
        self, day: date, segments: Mapping[str, Sequence[tuple[int, int]]]
    ) -> dict[str, list[Counts]]:
        """Counts of segments of the day by organization; see `segments.usage_in_segments`."""


@dataclass(frozen=True)
class CountedUsage:
    """Usage as counted from files."""

    engine: Engine
    readings: Folder
    snapshots: Folder
    window_days: int = 1

    def snapshot(self, day: date) -> Snapshot | None:
        """See `UsageSource`."""
        found = load_snapshot(self.engine, self.snapshots, day)
        return found if found is not None and found.is_whole else None

    def snapshot_id(self, day: date) -> str | None:
        """See `UsageSource`."""
        return snapshot_id_of(self.snapshots, day)

    def is_current(self, day: date) -> bool:
        """See `UsageSource`."""
        return is_current(self.readings, self.snapshots, day, window_days=self.window_days)

    def proven(self, day: date) -> dict[str, Counts]:
        """Counts of the day by organization, from sensor activity that is up to date."""
        days = [day - timedelta(days=back) for back in range(self.window_days - 1, -1, -1)]
        return proven_by(self.engine, self.readings, self.snapshots, days)

    def before_window(self, day: date) -> str | None:
        """The activity id of the day before the snapshot's window."""
        before = day - timedelta(days=self.window_days)
        counted = load_counted(self.snapshots, before)
        return None if counted is None else counted.activity_id

    def in_segments(
        self, day: date, segments: Mapping[str, Sequence[tuple[int, int]]]
    ) -> dict[str, list[Counts]]:
        """Counts of segments of the day, from its readings."""
        return usage_in_segments(
            self.engine, self.readings, self.snapshots, day, segments, window_days=self.window_days
        )
