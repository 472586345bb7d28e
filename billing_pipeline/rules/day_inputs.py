"""Everything one usage day is planned from, as values; and whether planning it again is of use.

`operations/day_inputs.py` reads `DayInputs` in one transaction; `planning.plan` is a pure function
of them. A day is up to date if the digest of its inputs is the one it was planned from, and no
deadline of its plan has passed: a refused report is too old one day.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from functools import cached_property

from billing_pipeline.rules.adjustments import Entry
from billing_pipeline.rules.eligibility import NO_PAYERS, Payers
from billing_pipeline.rules.gate import Finding
from billing_pipeline.rules.model import Cell, Meter, RecordedEvent, Usage
from billing_pipeline.rules.segments import Segment, whole_day
from billing_pipeline.rules.timestamps import is_over

NO_SNAPSHOT = "no usage snapshot was taken after the day's end: materialize usage_snapshot first"
READINGS_CHANGED = "its readings have changed since its snapshot was taken: count it again"


@dataclass(frozen=True)
class DayInputs:
    """What one usage day is planned from.

    `usage` and `snapshot_id` are those of the day's snapshot; without one they are empty and None.
    """

    usage_day: date
    now: datetime
    meters: Sequence[Meter]
    snapshot_id: str | None = None
    usage: Mapping[str, Usage] = field(default_factory=dict)
    """By organization."""
    segments: Mapping[str, Sequence[Segment]] = field(default_factory=dict)
    """By organization, where a billing period ends inside the day: the segments that have ended."""
    payers: Payers = NO_PAYERS
    recorded: Mapping[Cell, Sequence[RecordedEvent]] = field(default_factory=dict)
    adjustments: Mapping[Cell, Sequence[Entry]] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    """Why the gate is closed; empty if it is open, or if a person approved these counts."""
    undone: Container[Cell] = ()
    """Cells of which a person undid a run that reported this snapshot."""
    only: Collection[str] | None = None
    """The organizations to plan; None: all."""

    @property
    def is_partial(self) -> bool:
        """Whether the day is not over, and only segments that have ended can be planned."""
        return self.snapshot_id is None and not is_over(self.usage_day, self.now)

    @property
    def why_not_planned(self) -> str | None:
        """Why the day cannot be planned from these inputs; None if it can."""
        if self.snapshot_id is None:
            return None if self.is_partial and self.segments else NO_SNAPSHOT
        for organization, segments in self.segments.items():
            counted = sum(segment.usage.reading_volume for segment in segments)
            if counted != self.usage.get(organization, Usage()).reading_volume:
                return READINGS_CHANGED
        return None

    def segments_of(self, organization: str) -> Sequence[Segment]:
        """The segments of an organization; the whole day where no period ends inside it."""
        usage = self.usage.get(organization, Usage())
        return self.segments.get(organization) or [whole_day(self.usage_day, usage)]

    @cached_property
    def _gated(self) -> frozenset[str | None]:
        return frozenset(finding.organization_id for finding in self.findings)

    def waits_at_gate(self, organization: str) -> bool:
        """Whether the organization's usage waits at the gate."""
        return None in self._gated or organization in self._gated


@dataclass(frozen=True, slots=True)
class EventCounts:
    """How many meter events of a day the ledger has. These numbers only rise, but `unresolved`."""

    total: int = 0
    rejected: int = 0
    unresolved: int = 0


@dataclass(frozen=True)
class InputsDigest:
    """What a day is planned from, short enough to compare for many days at once.

    Recorded events count by number: every change that planning must see adds an event or rejects
    one. Customers and eligibility matter only for `open_cells`: usage on hold, and events that were
    refused. A cell that was reported as it should be keeps its customer whatever the mapping says.
    """

    snapshot: str | None
    meters: str
    boundaries: str
    """Period boundaries by organization, and the day before the snapshot's window."""
    organizations: str
    """Which organizations have a customer; empty if no meter is reported a zero first."""
    open_cells: str
    """Customers and eligibility of the organizations with usage on hold or refused."""
    adjustments: int
    """The newest adjustment entry of the day."""
    approval: bool
    """Whether a person let these counts through the gate."""
    undone: int
    """Cells of which a person undid a run."""
    recent: str
    """The snapshots of the days before, if usage of this day waits at the gate."""
    events: EventCounts

    def resolved(self) -> InputsDigest:
        """The same once every event of the day is resolved as planned."""
        return replace(self, events=replace(self.events, unresolved=0))

    def as_text(self) -> str:
        """To be stored."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> InputsDigest:
        """As it was stored."""
        fields = json.loads(text)
        return cls(**{**fields, "events": EventCounts(**fields["events"])})

    def differs_in(self, other: InputsDigest) -> set[str]:
        """The names of the inputs that differ."""
        return {name for name in self.__dataclass_fields__
                if getattr(self, name) != getattr(other, name)}  # fmt: skip


PAYERS_ONLY = frozenset({"organizations", "open_cells"})
"""Inputs that concern only organizations with open cells, and those that are new."""


@dataclass(frozen=True, slots=True)
class PlannedFrom:
    """What a day was planned from, and the instant after which age alone changes its plan."""

    digest: InputsDigest
    deadline: int | None = None
    """Unix seconds; None: never."""


@dataclass(frozen=True, slots=True)
class Staleness:
    """What of a day has to be planned again: nothing, some organizations, or all of it."""

    is_stale: bool
    only: frozenset[str] | None = None
    """The organizations to plan again; None: all."""


UP_TO_DATE = Staleness(False)


def staleness(
    planned: PlannedFrom | None, inputs: InputsDigest, now: datetime, concerned: Collection[str]
) -> Staleness:
    """Whether planning a day again could change anything, and for whom.

    `planned` is None for a day that was never planned whole. `concerned` are the organizations
    with open cells, and those with a customer but without a report.
    """
    if planned is None or (planned.deadline is not None and now.timestamp() > planned.deadline):
        return Staleness(True)
    changed = inputs.differs_in(planned.digest)
    if not changed:
        return UP_TO_DATE
    return Staleness(True, frozenset(concerned) if changed <= PAYERS_ONLY else None)
