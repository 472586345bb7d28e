"""What a run would report, and why: the plan of days, and what has changed in their readings.

Writes and sends nothing. `billing plan`, `billing run --dry-run` and a dry run in the Dagster UI
show the same lines, planned from the same inputs as a run.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger.days import counted_then
from billing_pipeline.operations.context import Context, Progress
from billing_pipeline.operations.day_inputs import SpanInputs, read_day_inputs, read_segments
from billing_pipeline.rules.day_inputs import NO_SNAPSHOT, DayInputs
from billing_pipeline.rules.holds import Hold
from billing_pipeline.rules.model import Cell, Meter, MeterEvent, RecordedEvent, Waiting
from billing_pipeline.rules.planning import NO_OPTIONS, DayPlan, PlanOptions, plan
from billing_pipeline.rules.recorded import recorded_value
from billing_pipeline.stripe_api.catalogue import look_up
from billing_pipeline.usage.activity import DAY_ERRORS, CountedDay
from billing_pipeline.usage.counted import CountedUsage
from billing_pipeline.usage.snapshot import Snapshot, take_snapshot
from billing_pipeline.usage.sources.folders import Folder

COUNTS = {
    "readings": "readings",
    "duplicates": "duplicates removed",
    "quarantined_rows": "rows in quarantine",
}


@dataclass(frozen=True)
class FileChange:
    """A file that is new, changed or removed since the day was last planned; rows then and now."""

    name: str
    change: str
    rows_before: int
    rows: int


@dataclass(frozen=True)
class Cause:
    """Why a day is planned again: its files and counts, then and now. All counts are of rows."""

    first: bool
    """Whether the day was never planned before."""
    files: list[FileChange] = field(default_factory=list)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(before, now) of those counts that differ."""

    @property
    def text(self) -> str:
        """In one line."""
        if self.first:
            return f"first count: {len(self.files)} files, {self.counts['readings'][1]} readings"
        changes = [f"{f.name} {f.change} ({f.rows_before} → {f.rows} rows)" for f in self.files[:3]]
        changes += [f"and {len(self.files) - 3} more files"] if len(self.files) > 3 else []
        changes += [f"{now - then:+d} {COUNTS[name]}" for name, (then, now) in self.counts.items()]
        return "; ".join(changes) or "its readings have not changed since it was last planned"


NOT_OVER = Cause(False)
"""Of a day that is not over only segments are planned; there is no count to compare."""


def cause_of(before: str | None, counted: CountedDay) -> Cause:
    """What has changed in a day's readings since it was planned (`CountedDay.summary` of then)."""
    now: dict[str, Any] = json.loads(counted.summary())
    nothing: dict[str, Any] = {"files": {}, **dict.fromkeys(COUNTS, 0)}
    then: dict[str, Any] = nothing if before is None else json.loads(before)
    files = []
    for name in sorted(then["files"].keys() | now["files"].keys()):
        (old, rows_before), (new, rows) = (
            side["files"].get(name, (None, 0)) for side in (then, now)
        )
        if old != new:
            change = "new" if old is None else "removed" if new is None else "changed"
            files.append(FileChange(name, change, rows_before, rows))
    counts = {name: (then[name], now[name]) for name in COUNTS}
    if before is not None:
        counts = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
    return Cause(before is None, files, counts)


@dataclass(frozen=True)
class PlanLine:
    """One line of a preview: what would happen to one cell, and why. Values are counts."""

    day: date
    organization_id: str
    meter: str
    action: str
    before: int | None
    target: int
    value: int
    detail: str
    cause: str

    @property
    def difference(self) -> int:
        """How much the target is above what Stripe has recorded."""
        return self.target - (self.before or 0)

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**vars(self), "day": self.day.isoformat(), "difference": self.difference}


@dataclass(frozen=True)
class Preview:
    """What `report_days` would plan now."""

    lines: list[PlanLine] = field(default_factory=list)
    causes: dict[date, Cause] = field(default_factory=dict)
    missing: list[date] = field(default_factory=list)
    """Days without a snapshot that was taken after their end."""
    errors: dict[date, str] = field(default_factory=dict)
    """Days that could not be counted, read or planned."""
    plans: dict[date, DayPlan] = field(default_factory=dict)
    counted: dict[date, CountedDay] = field(default_factory=dict)
    """What a dry run counted; empty otherwise."""

    def as_json(self) -> dict[str, Any]:
        """As `billing plan --json` prints it."""
        return {
            "plan": [line.as_json() for line in self.lines],
            "causes": {
                day.isoformat(): {**asdict(cause), "text": cause.text}
                for day, cause in self.causes.items()
            },
            "days_without_snapshot": [day.isoformat() for day in self.missing],
            "errors": {day.isoformat(): error for day, error in self.errors.items()},
        }


def preview_days(
    context: Context, days: Sequence[date], *, options: PlanOptions = NO_OPTIONS
) -> Preview:
    """What `report_days` would plan now from the snapshots there are, with these options.

    Asks Stripe for its meters where there is a key and an answer, else takes them as last seen.
    """
    span, preview = SpanInputs.read(context, _meters(context), days), Preview()
    counted = context.ledger.read(counted_then, days)
    for day in days:
        try:
            inputs, snapshot = _read(span, day)
        except DAY_ERRORS as error:
            preview.errors[day] = f"its snapshot cannot be read: {error}"
            continue
        planned = plan(inputs, options)
        if planned.why_not == NO_SNAPSHOT:
            preview.missing.append(day)
        elif planned.why_not is not None:
            preview.errors[day] = planned.why_not
        else:
            cause = NOT_OVER if snapshot is None else cause_of(counted.get(day), snapshot.counted)
            preview.plans[day], preview.causes[day] = planned, cause
            preview.lines.extend(plan_lines(planned, span.meters, inputs.recorded, cause.text))
    return preview


def _meters(context: Context) -> Sequence[Meter]:
    if context.settings.stripe_secret_key is not None:
        with suppress(StripeUnreachable):  # then as last seen will do for a preview
            return asyncio.run(look_up(context.gateway, context.settings.billing_meters)).meters
    return context.known_meters()


def _read(span: SpanInputs, day: date) -> tuple[DayInputs, Snapshot | None]:
    segments = read_segments(span.context, day, span.boundaries_of(day))
    with span.context.ledger.reading() as connection:
        return read_day_inputs(span, connection, day, segments)


def plan_lines(
    planned: DayPlan,
    meters: Sequence[Meter],
    recorded: Mapping[Cell, Sequence[RecordedEvent]],
    cause: str,
) -> list[PlanLine]:
    """A day's plan as lines for people, by organization and meter."""
    by_name = {meter.event_name: meter for meter in meters}

    def line(outcome: MeterEvent | Hold | Waiting, action: str, value: int, why: str) -> PlanLine:
        cell = outcome.cell
        events = recorded.get(cell, ())
        if isinstance(outcome, MeterEvent) and outcome.segment is not None:
            start, end = outcome.segment
            events = [each for each in events if start <= each.timestamp < end]
        return PlanLine(
            planned.usage_day,
            cell.organization_id,
            cell.event_name,
            action,
            recorded_value(by_name[cell.event_name], events),
            outcome.target,
            value,
            why,
            cause,
        )

    lines = [
        line(e, "report" if e.revision == 1 else "correct", e.value, f"revision {e.revision}")
        for e in planned.events
    ]
    lines += [
        line(h, "hold", h.value, f"{h.reason}: {h.explanation}")
        for h in planned.holds
        if not h.is_silent
    ]
    lines += [line(w, "wait", 0, "an earlier event is unresolved") for w in planned.waiting]
    return sorted(lines, key=lambda each: (each.day, each.organization_id, each.meter))


def dry_run(
    context: Context,
    days: Sequence[date],
    *,
    options: PlanOptions = NO_OPTIONS,
    progress: Progress | None = None,
) -> Preview:
    """Count these days aside, leaving their snapshots alone; preview what a run would report."""
    errors, counted = {}, {}
    with _counting_aside(context) as aside:
        for number, day in enumerate(days, start=1):
            try:
                snapshot = take_snapshot(
                    aside.engine,
                    aside.readings,
                    aside.snapshots,
                    day,
                    window_days=context.settings.billing_active_window_days,
                )
                counted[day] = snapshot.counted
            except DAY_ERRORS as error:
                errors[day] = str(error)
            if progress is not None:
                progress("counting", number, len(days))
        preview = preview_days(aside, list(counted), options=options)
    return replace(preview, errors=errors | preview.errors, counted=counted)


@contextmanager
def _counting_aside(context: Context) -> Iterator[Context]:
    """The same context with snapshots in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="billing-dry-run-") as folder:
        snapshots = Folder(folder)
        window_days = context.settings.billing_active_window_days
        usage = CountedUsage(context.engine, context.readings, snapshots, window_days)
        yield replace(context, snapshots=snapshots, usage=usage)
