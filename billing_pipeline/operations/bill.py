"""Bill a span of usage days: count, report, verify.

    stored Stripe events → snapshot, customers, ledger → plan → ledger → delivery → verification

The Dagster assets, `billing run` and the simulation all come through here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta

from billing_pipeline.ledger.days import store_planned_from
from billing_pipeline.ledger.decisions import end_undone, record_run
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.marks import look_again
from billing_pipeline.ledger.plans import write_plan
from billing_pipeline.operations.context import (
    NO_ACTOR,
    Actor,
    Contact,
    Context,
    Progress,
    contact_stripe,
)
from billing_pipeline.operations.day_inputs import (
    SpanInputs,
    read_day_inputs,
    read_digests,
    read_segments,
    read_staleness,
)
from billing_pipeline.rules.day_inputs import DayInputs, InputsDigest, PlannedFrom, Staleness
from billing_pipeline.rules.gate import Finding
from billing_pipeline.rules.model import Cell, Meter
from billing_pipeline.rules.planning import NO_OPTIONS, DayPlan, PlanOptions, plan
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.stripe_api.delivery import DeliveryReport, deliver
from billing_pipeline.stripe_api.verification import VerificationReport, verify
from billing_pipeline.stripe_events.applying import Applied, apply_due
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from billing_pipeline.usage.activity import DAY_ERRORS
from billing_pipeline.usage.snapshot import Snapshot, take_snapshot

MOST_SEGMENTS = 6
"""Rounds of planning and delivery in one run: a cell has one unresolved event at a time, so the
segments of a day are reported one after the other."""


@dataclass
class ReportOutcome:
    """What reporting a span of days did."""

    sent: int = 0
    """Requests that Stripe accepted."""
    stopped: str | None = None
    """Why delivery ended early (Stripe unreachable, key refused); the rest stays planned."""
    denied: bool = False
    """Whether it was the key, which only a person can fix."""
    planned_from: dict[date, str] = field(default_factory=dict)
    """The snapshot each planned day was planned from; empty for a day that is not over."""
    not_planned: dict[date, str] = field(default_factory=dict)
    """Why a day was not planned: no whole snapshot, or one that cannot be read."""
    gates: dict[date, list[Finding]] = field(default_factory=dict)
    """Why usage waits at the gate, by day."""
    problems: list[str] = field(default_factory=list)
    """Lines of the customers file that were ignored."""
    applied: Applied = field(default_factory=Applied)
    """What became of the stored Stripe events that were due."""

    def add(self, report: DeliveryReport) -> None:
        """Add what a delivery did."""
        self.sent += report.sent
        self.stopped = self.stopped or report.stopped
        self.denied = self.denied or report.denied


# Counting --------------------------------------------------------------------------------------


def counted_already(context: Context, day: date) -> Snapshot | None:
    """The day's snapshot if it says what its files say now: counting again would give the same.

    None as well if it cannot be read, so that it is taken again.
    """
    with suppress(*DAY_ERRORS):
        if context.usage.is_current(day):
            return context.usage.snapshot(day)
    return None


def count_usage(context: Context, day: date) -> Snapshot:
    """Take a day's snapshot. Until it is planned from, the day is stale, however old it is.

    Raises DAY_ERRORS.
    """
    mark_counted(context, day)
    return take_snapshot(
        context.engine,
        context.readings,
        context.snapshots,
        day,
        window_days=context.settings.billing_active_window_days,
    )


def mark_counted(context: Context, day: date) -> None:
    """Have a day looked at that is about to be counted.

    The window of a later day's segments reaches into it. A later day that is recent is looked at
    anyway.
    """
    marked = [day]
    if day_start(day) < (context.clock() - OLDEST_REPORTED).timestamp():
        marked.append(day + timedelta(days=context.settings.billing_active_window_days))
    context.ledger.write(look_again, marked)


# Reporting -------------------------------------------------------------------------------------


def report_days(
    context: Context,
    days: Sequence[date],
    *,
    by: Actor = NO_ACTOR,
    options: PlanOptions = NO_OPTIONS,
    progress: Progress | None = None,
) -> ReportOutcome:
    """Plan and deliver these days from their snapshots; `by` says who does it, and why.

    First come the stored Stripe events (a mapping, a cancellation, a closed period), then what an
    earlier run left unresolved or unverified: its cells wait for it.
    Raises ConfigurationError before anything is planned or sent.
    """
    outcome = ReportOutcome()
    context.ledger.write(record_run, by.who, by.reason, context.clock())
    if context.settings.billing_customers_file is not None:
        imported = context.customers.import_file(
            context.settings.billing_customers_file, context.clock()
        )
        outcome.problems = imported.problems
    contact = contact_stripe(context)
    outcome.applied = apply_events(context, progress)
    if contact.unreachable is None:
        leftovers = deliver_days(context, contact.meters, days, progress, leftovers=True)
        outcome.add(leftovers)
        # What an interrupted run left unverified would blur what later summaries can prove.
        verify(context.access(contact.meters), days)
    to_plan = list(days)
    for _ in range(MOST_SEGMENTS):
        unfinished = _plan_days(context, contact, to_plan, options, outcome, progress)
        if contact.unreachable is not None:
            outcome.stopped = f"Stripe cannot be reached: {contact.unreachable}"
        elif outcome.stopped is None:
            outcome.add(deliver_days(context, contact.meters, to_plan, progress))
        if outcome.stopped is not None or not unfinished:
            break
        to_plan = unfinished  # the next segments, now that these are resolved
    return outcome


def apply_events(context: Context, progress: Progress | None = None) -> Applied:
    """Apply the stored Stripe events that are due. Raises ConfigurationError without a key."""
    watch = _watch(progress, "applying")
    return apply_due(context.inbox, context.ledger, context.gateway, context.clock, watch)


def deliver_days(
    context: Context,
    meters: Sequence[Meter],
    days: Sequence[date],
    progress: Progress | None,
    *,
    leftovers: bool = False,
) -> DeliveryReport:
    """Deliver what is planned for these days; `leftovers`: only what is unresolved."""
    return deliver(
        context.access(meters),
        days,
        context.payers(),
        leftovers=leftovers,
        progress=_watch(progress, "delivering"),
    )


def _plan_days(
    context: Context,
    contact: Contact,
    days: Sequence[date],
    options: PlanOptions,
    outcome: ReportOutcome,
    progress: Progress | None,
) -> list[date]:
    """Plan the days that are stale; returns those with more segments to report after these."""
    unfinished = []
    span = SpanInputs.read(context, contact.meters, days)
    known = _staleness(span, days, outcome)
    for number, day in enumerate(days, start=1):
        stale, digest = known.get(day, (Staleness(True), None))
        if digest is not None and not stale.is_stale and not _is_asked_for(digest, options):
            outcome.gates.pop(day, None)
            outcome.planned_from[day] = digest.snapshot or ""
        elif day in known or day not in outcome.not_planned:
            only = None if digest is not None and _is_asked_for(digest, options) else stale.only
            if _plan_day(span, day, only, options, outcome):
                unfinished.append(day)
        if progress is not None:
            progress("planning", number, len(days))
    return unfinished


def _staleness(
    span: SpanInputs, days: Sequence[date], outcome: ReportOutcome
) -> Mapping[date, tuple[Staleness, InputsDigest]]:
    """Which of the days that have a whole snapshot are up to date."""
    snapshots: dict[date, str] = {}
    for day in days:
        try:
            if (snapshot_id := span.context.usage.snapshot_id(day)) is not None:
                snapshots[day] = snapshot_id
        except DAY_ERRORS as error:
            outcome.not_planned[day] = f"its snapshot cannot be read: {error}"
    with span.context.ledger.reading() as connection:
        return read_staleness(span, connection, snapshots)


def _is_asked_for(digest: InputsDigest, options: PlanOptions) -> bool:
    """Whether a person's options may change the plan of a day that is up to date."""
    return (options.retry_rejected and digest.events.rejected > 0) or (
        options.report_undone and digest.undone > 0
    )


def _plan_day(
    span: SpanInputs,
    day: date,
    only: Collection[str] | None,
    options: PlanOptions,
    outcome: ReportOutcome,
) -> bool:
    """Plan one day and write the plan; True if another round has more of it to report."""
    context = span.context
    try:
        segments = read_segments(context, day, span.boundaries_of(day))
        with context.ledger.planning() as writer:
            inputs, snapshot = read_day_inputs(span, writer.connection, day, segments, only)
            planned = plan(inputs, options)
            if planned.why_not is not None:
                outcome.not_planned[day] = planned.why_not
                return False
            _write(span, writer, inputs, planned, snapshot, options)
    except DAY_ERRORS as error:
        outcome.not_planned[day] = f"its snapshot cannot be read: {error}"
        return False
    outcome.gates.pop(day, None)
    if inputs.findings:
        outcome.gates[day] = list(inputs.findings)
    outcome.planned_from[day] = inputs.snapshot_id or ""
    return bool(planned.unfinished)


def _write(
    span: SpanInputs,
    writer: Writer,
    inputs: DayInputs,
    planned: DayPlan,
    snapshot: Snapshot | None,
    options: PlanOptions,
) -> None:
    """Write a plan, and what it was planned from once the whole day was planned."""
    names, day = {meter.event_name for meter in inputs.meters}, inputs.usage_day

    def covers(cell: Cell) -> bool:
        organization = cell.organization_id
        partly = inputs.is_partial and organization not in inputs.segments
        left = inputs.only is not None and organization not in inputs.only
        return cell.event_name in names and not partly and not left

    is_whole = write_plan(writer, planned, covers, inputs.snapshot_id, inputs.now)
    if snapshot is None:
        return
    end_undone(writer, day, None if options.report_undone else snapshot.snapshot_id)
    planned_from = None
    if is_whole:
        # As it will be once the events of this plan are resolved.
        digest = read_digests(span, writer.connection, {day: snapshot.snapshot_id})[day].resolved()
        planned_from = PlannedFrom(digest, planned.deadline)
    store_planned_from(writer, day, planned_from, snapshot.counted.summary(), inputs.now)


# Verifying -------------------------------------------------------------------------------------


def verify_days(
    context: Context,
    days: Sequence[date],
    *,
    wait_seconds: float = 0.0,
    everything: bool = False,
    progress: Progress | None = None,
) -> VerificationReport:
    """Compare the ledger with Stripe's summaries for these days.

    Raises ConfigurationError; when Stripe cannot be reached, the report says so.
    """
    contact = contact_stripe(context)
    if contact.unreachable is not None:
        return VerificationReport(unread=[contact.unreachable])
    return verify(
        context.access(contact.meters),
        days,
        wait_seconds=wait_seconds,
        everything=everything,
        progress=_watch(progress, "verifying"),
    )


def _watch(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """Progress of one kind of work."""

    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return watch
