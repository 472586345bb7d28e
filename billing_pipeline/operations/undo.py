"""Undo a run: report what Stripe had of its cells before it, as new revisions, by the same rules.

What the run reported stays on record, and so does who undid it, and why. An undone day stays undone
until its readings change or somebody runs it again: then it is reported as the readings prove.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.ledger.decisions import mark_undone, record_run
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.plans import write_plan
from billing_pipeline.ledger.queries import last_value, planned_by
from billing_pipeline.operations.bill import MOST_SEGMENTS, ReportOutcome, deliver_days, verify_days
from billing_pipeline.operations.context import Actor, Context, Progress, contact_stripe
from billing_pipeline.operations.day_inputs import SpanInputs, read_day_inputs
from billing_pipeline.operations.preview import PlanLine, plan_lines
from billing_pipeline.rules.day_inputs import DayInputs
from billing_pipeline.rules.holds import Hold
from billing_pipeline.rules.model import (
    SENT,
    Cell,
    Meter,
    MeterEvent,
    RecordedEvent,
    Waiting,
    usage_of,
)
from billing_pipeline.rules.planning import CellInputs, DayPlan, Outcome, plan_cell
from billing_pipeline.rules.recorded import recorded_value
from billing_pipeline.rules.segments import Segment, segments_between
from billing_pipeline.usage.activity import DAY_ERRORS

Reported = Mapping[Cell, Sequence[tuple[int, int]]]
"""(revision, timestamp) of what a run reported, by cell."""


@dataclass
class Undone:
    """What undoing a run did. `unchanged` says of cells why they stay as they are."""

    run: str
    reason: str
    lines: list[PlanLine] = field(default_factory=list)
    unchanged: list[dict[str, Any]] = field(default_factory=list)
    days: list[date] = field(default_factory=list)
    reporting: ReportOutcome = field(default_factory=ReportOutcome)


def undo_run(
    context: Context,
    run: str,
    by: Actor,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Undone:
    """Report again what Stripe had before `run`, in every cell that it was the last to report.

    Raises ConfigurationError for an unknown run, without a reason, or if Stripe is unreachable.
    """
    reason = by.reason.strip()
    reported: dict[date, dict[Cell, list[tuple[int, int]]]] = {}
    for cell, revision, timestamp in context.ledger.read(planned_by, run):
        cells = reported.setdefault(cell.usage_day, defaultdict(list))
        cells[cell].append((revision, timestamp))
    if not reported:
        raise ConfigurationError(
            f"no run {run!r} has reported anything: `billing run` prints a run's id, and `billing "
            "explain` shows which run reported what"
        )
    if not reason:
        raise ConfigurationError("an undo needs a reason: it stays on record")
    contact = contact_stripe(context)
    if contact.unreachable is not None:
        raise StripeUnreachable(contact.unreachable)
    undone = Undone(run, reason, days=sorted(reported))
    if not dry_run:
        why = f"undo of {run}: {reason}"
        context.ledger.write(record_run, by.who, why, context.clock(), undoes=run)
        # An outcome that is not known is resolved first: its cell waits for it.
        leftovers = deliver_days(context, contact.meters, undone.days, progress, leftovers=True)
        undone.reporting.add(leftovers)
    for _ in range(MOST_SEGMENTS):
        undone.unchanged.clear()
        span = SpanInputs.read(context, contact.meters, undone.days)
        more = [_undo_day(span, day, reported[day], undone, dry_run) for day in undone.days]
        if dry_run:
            break
        undone.reporting.add(deliver_days(context, contact.meters, undone.days, progress))
        if not any(more) or undone.reporting.stopped is not None:
            break
    if not dry_run:
        verify_days(context, undone.days)
    return undone


def _undo_day(
    span: SpanInputs, day: date, reported: Reported, undone: Undone, dry_run: bool
) -> bool:
    """Plan one day's undoing and write it; True if another round has more of it to report."""
    context = span.context
    # What this undoing has reported already does not count as another run's report.
    ours = {(c, revision) for c, revision, _ in context.ledger.read(planned_by, context.ledger.run)}
    with context.ledger.planning() as writer:
        inputs, _ = read_day_inputs(span, writer.connection, day, {})
        undoing = _Undoing(span, writer, inputs, undone.run, ours)
        for cell, events in reported.items():
            undoing.add(cell, events)
        undone.unchanged += undoing.unchanged
        cause = f"undo of {undone.run}"
        undone.lines += plan_lines(undoing.plan, span.meters, inputs.recorded, cause)
        if not dry_run:
            # Usage that waits for other reasons is not an undoing's business.
            write_plan(writer, undoing.plan, lambda _cell: False, None, inputs.now)
            mark_undone(
                writer,
                reported.keys() - undoing.kept,
                _snapshot_id(context, day),
                undone.reason,
                inputs.now,
            )
    return bool(undoing.plan.unfinished)


class _Undoing:
    """The plan of one day's undoing, cell by cell."""

    def __init__(
        self,
        span: SpanInputs,
        writer: Writer,
        inputs: DayInputs,
        run: str,
        ours: set[tuple[Cell, int]],
    ) -> None:
        self.plan = DayPlan(inputs.usage_day)
        self.kept = set[Cell]()
        """Cells that stay as they are, and are not undone."""
        self.unchanged: list[dict[str, Any]] = []
        self._span = span
        self._writer = writer
        self._inputs = inputs
        self._run = run
        self._ours = ours
        self._meters = {meter.event_name: meter for meter in inputs.meters}

    def add(self, cell: Cell, events: Sequence[tuple[int, int]]) -> None:
        """Plan what Stripe had of a cell before these events (revision, timestamp)."""
        meter = self._meters.get(cell.event_name)
        if meter is None:
            self._keep(cell, "its meter is not configured any more")
            return
        recorded = self._inputs.recorded.get(cell, ())
        first, last = min(events)[0], max(events)[0]
        boundaries = self._span.boundaries_of(cell.usage_day).get(cell.organization_id, ())
        bounds = segments_between(cell.usage_day, boundaries)
        before = [e for e in recorded if e.revision < first]
        segments = [
            Segment(start, end, usage_of(meter.measure, self._had(meter, cell, before, start, end)))
            for start, end in bounds
            if any(start <= timestamp < end for _, timestamp in events)
        ]
        later = [e for e in recorded if e.revision > last and e.state in SENT]
        if any((cell, e.revision) not in self._ours for e in later):
            if not all(_has(meter, recorded, segment) for segment in segments):
                self._keep(cell, "it was reported again since, by another run")
            return
        outcomes = plan_cell(
            CellInputs(
                meter,
                cell,
                segments,
                self._inputs.payers.customers.get(cell.organization_id),
                recorded,
                self._inputs.now,
                self._inputs.payers,
                retry_rejected=True,
            )
        )
        self._add(cell, outcomes, bounds, recorded)

    def _add(
        self,
        cell: Cell,
        outcomes: Sequence[Outcome],
        bounds: Sequence[tuple[int, int]],
        recorded: Sequence[RecordedEvent],
    ) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Hold):
                self.unchanged.append(_unchanged(cell, outcome.explanation))
            elif isinstance(outcome, Waiting):
                self.unchanged.append(_unchanged(cell, "an earlier event is unresolved"))
        events = [outcome for outcome in outcomes if isinstance(outcome, MeterEvent)]
        if len(bounds) > 1:  # only some of the day's segments may have been planned here
            events = [
                replace(e, segment=next(b for b in bounds if b[0] <= e.timestamp < b[1]))
                for e in events
            ]
        self.plan.add(cell, events, recorded)

    def _keep(self, cell: Cell, why: str) -> None:
        self.kept.add(cell)
        self.unchanged.append(_unchanged(cell, why))

    def _had(
        self, meter: Meter, cell: Cell, before: Sequence[RecordedEvent], start: int, end: int
    ) -> int:
        """What Stripe had of a segment before the run.

        A `last` meter that had nothing of it showed the value before: that is reported.
        """
        had = recorded_value(meter, [e for e in before if start <= e.timestamp < end])
        if had is not None or not meter.replaces or meter.event_time_window == "day":
            return had or 0
        organization, connection = cell.organization_id, self._writer.connection
        return last_value(connection, organization, cell.event_name, start, without=self._run) or 0


def _snapshot_id(context: Context, day: date) -> str:
    """The day's present snapshot; empty if there is none that can be read."""
    with suppress(*DAY_ERRORS):
        return context.usage.snapshot_id(day) or ""
    return ""


def _has(meter: Meter, recorded: Sequence[RecordedEvent], segment: Segment) -> bool:
    """Whether Stripe has of a segment what it should have, as after an earlier undoing."""
    value = recorded_value(meter, [e for e in recorded if segment.contains(e.timestamp)])
    return (value or 0) == segment.usage.of(meter.measure)


def _unchanged(cell: Cell, why: str) -> dict[str, Any]:
    return {
        "day": cell.usage_day.isoformat(),
        "organization_id": cell.organization_id,
        "meter": cell.event_name,
        "why": why,
    }
