"""What a run would say, and why: the plan of days, and what has changed in their readings.

Writes and sends nothing. `billing plan`, `billing run --dry-run` and a dry run in the Dagster UI
show the same lines.
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

from billing_pipeline.operations.reporting import (
    Context,
    Progress,
    Recent,
    behind_gate,
    judge_gate,
    period_boundaries,
    read_segments,
    usage_by_organization,
)
from billing_pipeline.rules.model import (
    Cell,
    Meter,
    MeterEvent,
    RecordedEvent,
)
from billing_pipeline.rules.planning import (
    DayPlan,
    plan_day,
)
from billing_pipeline.rules.recorded import recorded_value
from billing_pipeline.stripe_api.catalogue import look_up
from billing_pipeline.stripe_api.retrying import StripeUnreachable
from billing_pipeline.usage.activity import (
    DAY_ERRORS,
    CountedDay,
)
from billing_pipeline.usage.counted import CountedUsage
from billing_pipeline.usage.snapshot import take_snapshot
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
        message = [f"{f.name} {f.change} ({f.rows_before} → {f.rows} rows)" for f in self.files[:3]]
        message += [f"and {len(self.files) - 3} more files"] if len(self.files) > 3 else []
        message += [
            f"{now - before:+d} {COUNTS[name]}" for name, (before, now) in self.counts.items()
        ]
        return "; ".join(message) or "its readings have not changed since it was last planned"


def why(before: str | None, counted: CountedDay) -> Cause:
    """What has changed in a day's readings since it was planned (`CountedDay.brief` of then)."""
    now: dict[str, Any] = json.loads(counted.brief())
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
    """Days without a snapshot."""
    errors: dict[date, str] = field(default_factory=dict)
    """Days that could not be counted or read."""

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
    context: Context, days: Sequence[date], *, retry_rejected: bool = False
) -> Preview:
    """What `report_days` would plan now from the snapshots there are.

    Asks Stripe for its meters where there is a key and an answer, else takes them as last seen.
    """
    specs = context.settings.billing_meters
    meters: Sequence[Meter] = context.ledger.known_meters(specs)
    if context.settings.stripe_secret_key is not None:
        with suppress(StripeUnreachable):  # then as last seen will do for a preview
            meters = asyncio.run(look_up(context.gateway, specs)).meters
    payers = context.payers()
    recorded, adjustments = context.ledger.recorded(days), context.adjustments.adjustments(days)
    inputs, recent, preview = context.inquiry.inputs(days), Recent(context), Preview()
    for day in days:
        try:
            snapshot = context.usage.snapshot(day)
            if snapshot is None:
                preview.missing.append(day)
                continue
            segments_of = read_segments(
                context, day, period_boundaries(context, meters, payers, day)
            )
        except DAY_ERRORS as error:
            preview.errors[day] = f"its snapshot cannot be read: {error}"
            continue
        approved = context.ledger.gate_approved(day, snapshot.snapshot_id)
        # Nothing counts as undone here: a person's run, which this shows, would report it again.
        plan = plan_day(
            day,
            meters,
            usage_by_organization(snapshot),
            payers,
            recorded[day],
            context.clock(),
            segments_of=segments_of,
            gated=behind_gate(judge_gate(context, snapshot, recent, approved)),
            adjustments=adjustments[day],
            retry_rejected=retry_rejected,
        )
        preview.causes[day] = why(inputs.get(day), snapshot.counted)
        preview.lines.extend(plan_lines(plan, meters, recorded[day], preview.causes[day].text))
    return preview


def plan_lines(
    plan: DayPlan,
    meters: Sequence[Meter],
    recorded: Mapping[Cell, Sequence[RecordedEvent]],
    cause: str,
) -> list[PlanLine]:
    """A day's plan as lines for people, by organization and meter."""
    by_name = {meter.event_name: meter for meter in meters}

    def line(planned: Any, action: str, value: int, detail: str) -> PlanLine:
        cell, segment = planned.cell, recorded.get(planned.cell, ())
        if isinstance(planned, MeterEvent) and planned.segment is not None:
            start, end = planned.segment
            segment = [each for each in segment if start <= each.timestamp < end]
        return PlanLine(
            plan.usage_day,
            cell.organization_id,
            cell.event_name,
            action,
            recorded_value(by_name[cell.event_name], segment),
            planned.target,
            value,
            detail,
            cause,
        )

    lines = [
        line(e, "state" if e.revision == 1 else "correct", e.value, f"revision {e.revision}")
        for e in plan.events
    ]
    lines += [
        line(h, "hold", h.value, f"{h.reason}: {h.explanation}")
        for h in plan.holds
        if not h.is_silent
    ]
    lines += [line(w, "wait", 0, "an earlier event is not resolved yet") for w in plan.waiting]
    return sorted(lines, key=lambda each: (each.day, each.organization_id, each.meter))


def dry_run(
    context: Context,
    days: Sequence[date],
    *,
    retry_rejected: bool = False,
    progress: Progress | None = None,
) -> Preview:
    """Count these days aside, leaving their snapshots alone; preview what they would ask for."""
    errors = {}
    with _counting_aside(context) as aside:
        for number, day in enumerate(days, start=1):
            try:
                take_snapshot(
                    aside.engine,
                    aside.readings,
                    aside.snapshots,
                    day,
                    window_days=context.settings.billing_active_window_days,
                )
            except DAY_ERRORS as error:
                errors[day] = str(error)
            if progress is not None:
                progress("counting", number, len(days))
        counted = [day for day in days if day not in errors]
        preview = preview_days(aside, counted, retry_rejected=retry_rejected)
    return replace(preview, errors=errors | preview.errors)


@contextmanager
def _counting_aside(context: Context) -> Iterator[Context]:
    """The same rooms with snapshots in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="billing-dry-run-") as folder:
        snapshots = Folder(folder)
        window_days = context.settings.billing_active_window_days
        usage = CountedUsage(context.engine, context.readings, snapshots, window_days)
        yield replace(context, snapshots=snapshots, usage=usage)
