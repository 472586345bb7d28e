"""The figures that one usage day adds to rows, and why they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from billing_pipeline.ledger.decisions import undone
from billing_pipeline.ledger.queries import holds_of, rejected
from billing_pipeline.operations.day_inputs import SpanInputs, read_day_inputs
from billing_pipeline.rules.adjustments import adjusted_by
from billing_pipeline.rules.day_inputs import DayInputs
from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.model import Cell, Meter, Usage
from billing_pipeline.rules.reconciliation import CellFacts, SegmentHold
from billing_pipeline.rules.recorded import reported_customer
from billing_pipeline.rules.segments import Segment
from billing_pipeline.rules.timestamps import day_end, day_start, is_over

Stretches = Mapping[str, Sequence[tuple[int, int]]]
"""By organization, the segments [start, end) of a day that single rows take in (unix seconds)."""


@dataclass(frozen=True)
class DayFigures:
    """A usage day with its inputs, and what became of it."""

    inputs: DayInputs
    proven: Mapping[str, Usage]
    """By organization, what the readings prove now."""
    segments: Mapping[tuple[str, int, int], Usage]
    """By organization, start and end: segments that single rows take in, counted now."""
    holds: Mapping[Cell, Sequence[SegmentHold]]
    refused: Mapping[Cell, str]
    undone: Mapping[Cell, str]
    stale: str | None
    """Why the ledger may not have what the snapshot says."""
    changed: str | None
    """Why the snapshot may not say what the readings prove."""

    @property
    def day(self) -> date:
        """The usage day."""
        return self.inputs.usage_day

    @classmethod
    def read(
        cls, span: SpanInputs, day: date, stretches: Stretches, *, is_stale: bool
    ) -> DayFigures:
        """Read a day, and count its segments. Raises DAY_ERRORS."""
        usage, midnight = span.context.usage, day_start(day)
        wanted = {
            organization: [(start - midnight, end - midnight) for start, end in spans]
            for organization, spans in stretches.items()
        }
        counts = usage.in_segments(day, wanted) if wanted else {}
        with span.context.ledger.reading() as connection:
            inputs, snapshot = read_day_inputs(span, connection, day, {}, judge=False)
            on_hold: dict[Cell, list[SegmentHold]] = {}
            for each in holds_of(connection, [day], zeros=True):
                hold = SegmentHold(HoldReason(each.reason), each.start, each.value)
                on_hold.setdefault(each.cell, []).append(hold)
            refused = {
                Cell(day, row["organization_id"], row["meter"]): str(row["error_message"])
                for row in rejected(connection, [day])
            }
            taken_back = undone(connection, day)
        stale = changed = None
        over = is_over(day, inputs.now)
        if not over:
            stale = f"{day} is not over, and its segment of the period is not reported yet"
        elif snapshot is None:
            stale = changed = f"{day} is not counted yet"
        else:
            if not usage.is_current(day):
                changed = f"the readings of {day} changed after they were counted"
            if is_stale:
                stale = f"{day} was counted and is not reported from that yet"
        proven = {o: Usage(*both) for o, both in usage.proven(day).items()} if over else {}
        segments = {
            (organization, *bounds): Usage(*both)
            for organization, spans in stretches.items()
            for bounds, both in zip(spans, counts[organization], strict=True)
        }
        return cls(inputs, proven, segments, on_hold, refused, taken_back, stale, changed)

    def payer(self, organization: str, event_name: str) -> str | None:
        """Whose usage a cell is: of the customer it was reported for, else of today's."""
        cell = Cell(self.day, organization, event_name)
        reported = reported_customer(self.inputs.recorded.get(cell, ()))
        return reported or self.inputs.payers.customers.get(organization)

    def organizations(self) -> set[str]:
        """Everyone who used something, or has usage on hold."""
        on_hold = {cell.organization_id for cell in self.holds}
        return {*self.proven, *self.inputs.usage, *on_hold}

    def usage(self, organization: str, start: int, end: int) -> tuple[Usage, Usage]:
        """What the readings prove of [start, end), and what was counted of it.

        There is no snapshot of a segment: it is counted from the readings each time.
        """
        nothing = Usage()
        if (start, end) == (day_start(self.day), day_end(self.day)):
            proven = self.proven.get(organization, nothing)
            return proven, self.inputs.usage.get(organization, nothing)
        segment = self.segments.get((organization, start, end), nothing)
        return segment, segment

    def facts(self, meter: Meter, organization: str, segment: Segment) -> CellFacts:
        """What is known of one segment of a cell."""
        cell = Cell(self.day, organization, meter.event_name)
        return CellFacts(
            meter,
            segment,
            self.inputs.recorded.get(cell, ()),
            self.holds.get(cell, ()),
            adjusted_by(self.inputs.adjustments.get(cell, ()), segment),
            self.refused.get(cell),
            self.undone.get(cell),
            self.stale,
        )
