"""Undo a run: state what Stripe had of its cells before it, as new revisions, by the same rules.

What the run said stays on record; so does who undid it, and why. An undone day stays undone until
its readings change or somebody runs it again: then it is reported as the readings prove.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from billing_pipeline.operations.preview import PlanLine, plan_lines
from billing_pipeline.operations.reporting import (
    Actor,
    Context,
    Progress,
    ReportOutcome,
    contact,
    deliver_days,
    period_boundaries,
    verify_days,
)
from billing_pipeline.rules.model import (
    SENT,
    Cell,
    Hold,
    Meter,
    MeterEvent,
    RecordedEvent,
    Waiting,
    usage_of,
)
from billing_pipeline.rules.planning import (
    DayPlan,
    plan_segments,
)
from billing_pipeline.rules.recorded import recorded_value
from billing_pipeline.rules.segments import (
    Segment,
    segment_bounds,
)
from billing_pipeline.settings import ConfigurationError
from billing_pipeline.usage.activity import DAY_ERRORS

ROUNDS = 6
"""A cell has one unresolved event at a time: the parts of a day with segments follow one another."""


@dataclass
class Undone:
    """What undoing a run did. `left` says of cells why they stay as they are."""

    run: str
    reason: str
    lines: list[PlanLine] = field(default_factory=list)
    left: list[dict[str, Any]] = field(default_factory=list)
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
    """Report again what Stripe had before `run`, in every cell that it was the last to speak of.

    Raises ConfigurationError for an unknown run, without a reason, or where Stripe is away.
    """
    touched = context.inquiry.planned_by(run)
    if not touched:
        raise ConfigurationError(
            f"no run {run!r} has reported anything: `billing run` prints a run's id, and `billing "
            "explain` shows which run said what"
        )
    if not by.reason.strip():
        raise ConfigurationError("an undo needs a reason: it stays on record")
    reached = contact(context)
    if reached.unreachable is not None:
        raise ConfigurationError(f"Stripe cannot be reached: {reached.unreachable}")
    days = sorted({cell.usage_day for cell, _, _ in touched})
    undone = Undone(run, by.reason.strip(), days=days)
    if not dry_run:
        context.ledger.begin(
            by.who, f"undo of {run}: {by.reason.strip()}", context.clock(), undoes=run
        )
        # An outcome that is open is resolved first: its cell waits for it.
        deliver_days(context, reached.meters, days, undone.reporting, progress, leftovers=True)
    for _ in range(ROUNDS):
        undone.left.clear()
        more = False
        for day in days:
            cells = [(c, r, t) for c, r, t in touched if c.usage_day == day]
            more |= _undo_day(context, reached.meters, day, cells, undone, dry_run)
        if dry_run:
            break
        deliver_days(context, reached.meters, days, undone.reporting, progress)
        if not more or undone.reporting.stopped is not None:
            break
    if not dry_run:
        verify_days(context, days)
    return undone


def _undo_day(
    context: Context,
    meters: Sequence[Meter],
    day: date,
    touched: Sequence[tuple[Cell, int, int]],
    undone: Undone,
    dry_run: bool,
) -> bool:
    """Plan one day's undoing and write it down; True if another round has more of it to say."""
    by_name = {meter.event_name: meter for meter in meters}
    payers = context.payers()
    ends = period_boundaries(context, meters, payers, day)
    spoken: dict[Cell, list[tuple[int, int]]] = defaultdict(list)
    for cell, revision, timestamp in touched:
        spoken[cell].append((revision, timestamp))
    # What this undoing has said already is not somebody else's word.
    ours = {
        (cell, revision) for cell, revision, _ in context.inquiry.planned_by(context.ledger.run)
    }
    with context.ledger.planning() as connection:
        recorded = context.ledger.recorded([day], connection)[day]
        plan, kept = DayPlan(day), set[Cell]()
        for cell, events in spoken.items():
            history, meter = recorded.get(cell, []), by_name.get(cell.event_name)
            first, last = min(events)[0], max(events)[0]
            if meter is None:
                undone.left.append(_left(cell, "the meter is not reported to any more"))
                kept.add(cell)
                continue
            before = [s for s in history if s.revision < first]
            segments = segment_bounds(day, ends.get(cell.organization_id, ()))
            segments = [
                Segment(start, end, usage_of(meter.measure, held))
                for start, end in segments
                if any(start <= timestamp < end for _, timestamp in events)
                for held in (_held_before(context, undone.run, meter, cell, before, start, end),)
            ]
            later = [s for s in history if s.revision > last and s.state in SENT]
            if any((cell, s.revision) not in ours for s in later):
                if not all(_holds(meter, history, segment) for segment in segments):
                    undone.left.append(_left(cell, "it was reported again since, by another run"))
                    kept.add(cell)
                continue
            outcomes = plan_segments(
                meter,
                cell,
                segments,
                payers.customers.get(cell.organization_id),
                history,
                context.clock(),
                payers=payers,
                retry_rejected=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, Hold):
                    undone.left.append(_left(cell, outcome.explanation))
                elif isinstance(outcome, Waiting):
                    undone.left.append(_left(cell, "an earlier event is not resolved yet"))
            reported = [
                replace(o, segment=next(p for p in segments if p[0] <= o.timestamp < p[1]))
                if len(segments) > 1
                else o
                for o in outcomes
                if isinstance(o, MeterEvent)
            ]
            plan.add(cell, reported, history)
        cause = f"undo of {undone.run}"
        undone.lines += plan_lines(plan, meters, recorded, cause)
        if not dry_run:
            # What waits for other reasons is none of an undoing's business.
            now = context.clock()
            context.ledger.write_plan(connection, plan, lambda _cell: False, None, now)
            context.ledger.mark_undone(
                connection, spoken.keys() - kept, _snapshot_id(context, day), undone.reason, now
            )
    return bool(plan.unfinished)


def _snapshot_id(context: Context, day: date) -> str:
    """The day's snapshot at present; empty where there is none that can be read."""
    with suppress(*DAY_ERRORS):
        return context.usage.snapshot_id(day) or ""
    return ""


def _holds(meter: Meter, history: Sequence[RecordedEvent], segment: Segment) -> bool:
    """Whether Stripe has of a part of a cell what it is to hold, as after an earlier undoing."""
    held = recorded_value(meter, [s for s in history if segment.holds(s.timestamp)])
    return (held or 0) == segment.usage.of(meter.measure)


def _left(cell: Cell, why: str) -> dict[str, Any]:
    return {
        "day": cell.usage_day.isoformat(),
        "organization_id": cell.organization_id,
        "meter": cell.event_name,
        "why": why,
    }


def _held_before(
    context: Context,
    run: str,
    meter: Meter,
    cell: Cell,
    before: Sequence[RecordedEvent],
    start: int,
    end: int,
) -> int:
    """What Stripe had of a part of a cell before the run.

    A `last` meter to which nothing had been said of it showed the value before: that is reported.
    """
    held = recorded_value(meter, [s for s in before if start <= s.timestamp < end])
    if held is not None or not meter.replaces:
        return held or 0
    if meter.event_time_window == "day":
        return 0
    return (
        context.inquiry.last_value(cell.organization_id, cell.event_name, start, without=run) or 0
    )
