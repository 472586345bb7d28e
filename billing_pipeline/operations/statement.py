"""State a span of usage days: the one use case that joins the rooms.

    what Stripe said → snapshot, customers, ledger → plan → ledger → delivery → verification

The Dagster assets, `billing run` and `billing plan` all come through here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

from billing_pipeline.customers.directory import (
    CustomerDirectory,
    FinalPeriod,
)
from billing_pipeline.database import open_database
from billing_pipeline.ledger.adjustments import AdjustmentBook
from billing_pipeline.ledger.inquiry import (
    Closed,
    Inquiry,
    LeftOut,
)
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.operations.reporter import UsageReporter
from billing_pipeline.rules.adjustments import Entry
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.gate import (
    Finding,
    implausible,
)
from billing_pipeline.rules.model import (
    Cell,
    Hold,
    Meter,
    MeterEvent,
    Usage,
    usage_of,
)
from billing_pipeline.rules.planning import (
    plan_day,
    plan_segments,
    shared_customers,
)
from billing_pipeline.rules.segments import (
    Segment,
    segment_bounds,
)
from billing_pipeline.rules.timestamps import OLDEST, day_end, day_start, is_over
from billing_pipeline.settings import ConfigurationError, Settings
from billing_pipeline.stripe_api.catalogue import look_up
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.delivery import (
    DeliveryReport,
    deliver,
)
from billing_pipeline.stripe_api.retrying import StripeUnreachable
from billing_pipeline.stripe_api.verification import (
    VerificationReport,
    verify,
)
from billing_pipeline.stripe_events.applying import (
    Applied,
    apply_due,
)
from billing_pipeline.stripe_events.inbox import Inbox
from billing_pipeline.usage.activity import DAY_ERRORS
from billing_pipeline.usage.counted import (
    CountedUsage,
    UsageSource,
)
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.snapshot import (
    Snapshot,
    take_snapshot,
)
from billing_pipeline.usage.sources.folders import Folder

Clock = Callable[[], datetime]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


MOST_SEGMENTS = 6
"""Rounds of planning and delivery in one run: a cell has one unresolved event at a time, so the
segments of a day with segments are reported one after the other."""

READINGS_CHANGED = "its readings have changed since its snapshot was taken: count it again"
NO_SNAPSHOT = "no usage snapshot was taken after the day's end: materialize usage_snapshot first"

VERIFIABLE = timedelta(days=41)
"""How long accepted events are asked for again: a week longer than anything can be reported."""


def utc_now() -> datetime:
    """The clock of production."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """Everything a report needs, opened once. `run` names who acts, in the ledger."""

    settings: Settings
    engine: Engine
    readings: Folder
    snapshots: Folder
    usage: UsageSource
    ledger: Ledger
    inquiry: Inquiry
    adjustments: AdjustmentBook
    customers: CustomerDirectory
    inbox: Inbox
    gateway: StripeGateway
    clock: Clock

    @classmethod
    def open(cls, settings: Settings, run: str, clock: Clock = utc_now) -> Context:
        """Open the database (bringing its schema up to date); contacts nobody else.

        Raises ConfigurationError.
        """
        database = open_database(settings.billing_database_url.get_secret_value())
        engine = Engine(settings.memory_limit, clock, spark=settings.spark)
        readings = Folder(settings.billing_readings_uri)
        snapshots = Folder(settings.billing_snapshots_uri)
        return cls(
            settings,
            engine,
            readings,
            snapshots,
            CountedUsage(engine, readings, snapshots, settings.billing_active_window_days),
            Ledger(database, run),
            Inquiry(database),
            AdjustmentBook(database, run),
            CustomerDirectory(database),
            Inbox(database),
            StripeGateway(settings),
            clock,
        )

    def close(self) -> None:
        """Give the database's connections back."""
        self.ledger.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reporter(self) -> UsageReporter:
        """The Python API for single counts, over the same ledger and customers."""
        return UsageReporter(
            self.gateway,
            self.ledger,
            self.adjustments,
            self.settings.billing_meters,
            self.payers,
            self.clock,
        )

    def payers(self) -> Payers:
        """Who pays today, and what may be reported for them; the customers file counts as imported."""
        return self.customers.payers(
            self.settings.subscription_policy, self.settings.billing_customers_file
        )


@dataclass(frozen=True)
class Actor:
    """Who acts, and why: kept with the run, and shown with all that it said."""

    who: str = ""
    reason: str = ""


NO_ACTOR = Actor()


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
    """The snapshot each planned day was planned from."""
    not_planned: dict[date, str] = field(default_factory=dict)
    """Why a day was not planned: no whole snapshot, or one that cannot be read."""
    gates: dict[date, list[Finding]] = field(default_factory=dict)
    """Why days wait at the gate, by day; in parts, or whole."""
    problems: list[str] = field(default_factory=list)
    """Lines of the customers file that were left out."""
    applied: Applied = field(default_factory=Applied)
    """What became of the Stripe events that were waiting."""


@dataclass(frozen=True)
class Contact:
    """The meters to report to, and whether Stripe was reached to look at them."""

    meters: Sequence[Meter]
    unreachable: str | None = None


def contact(context: Context) -> Contact:
    """Look the meters up and bind the ledger; without an answer, the meters as last seen.

    First reports are the same for every meter we accept, and corrections need a meter that
    was seen before; so planning without Stripe plans what planning with it would.
    Raises ConfigurationError for what must be fixed before anything is sent.
    """
    specs = context.settings.billing_meters
    try:
        catalogue = asyncio.run(look_up(context.gateway, specs))
    except StripeUnreachable as error:
        return Contact(context.ledger.known_meters(specs), str(error))
    context.ledger.bind(catalogue.account_id, catalogue.livemode, catalogue.meters, context.clock())
    return Contact(catalogue.meters)


def reopen_for(context: Context, day: date) -> None:
    """Have a day planned again that is about to be counted.

    The window of a later day's parts reaches into it. Of days that Stripe still takes something
    for, `unfinished_days` sees that by itself.
    """
    days = [day]
    if day_start(day) < (context.clock() - OLDEST).timestamp():
        days.append(day + timedelta(days=context.settings.billing_active_window_days))
    context.ledger.reopen(days)


def counted_already(context: Context, day: date) -> Snapshot | None:
    """The day's snapshot if it says what its files say now: counting again would give the same.

    None as well where it cannot be read, so that it is taken again.
    """
    with suppress(*DAY_ERRORS):
        if context.usage.is_current(day):
            return context.usage.snapshot(day)
    return None


def count_usage(context: Context, day: date) -> Snapshot:
    """Take a day's snapshot. Until it is planned from, the day is unfinished, however old it is.

    Raises DAY_ERRORS.
    """
    reopen_for(context, day)
    return take_snapshot(
        context.engine,
        context.readings,
        context.snapshots,
        day,
        window_days=context.settings.billing_active_window_days,
    )


def report_days(
    context: Context,
    days: Sequence[date],
    *,
    by: Actor = NO_ACTOR,
    retry_rejected: bool = False,
    report_undone: bool = False,
    progress: Progress | None = None,
) -> ReportOutcome:
    """Plan and deliver these days from their snapshots; `by` says who does it, and why.

    What was undone stays so until its snapshot is another one, or with `report_undone`.

    What Stripe has said meanwhile comes first (a mapping, a cancellation, a closed period), then
    what an earlier run left unresolved or unverified: its cells wait for it.
    Raises ConfigurationError before anything is planned or sent.
    """
    reporting = ReportOutcome()
    context.ledger.begin(by.who, by.reason, context.clock())
    if context.settings.billing_customers_file is not None:
        report = context.customers.import_file(
            context.settings.billing_customers_file, context.clock()
        )
        reporting.problems = report.problems
    reached = contact(context)
    reporting.applied = apply_events(context, progress)
    if reached.unreachable is None:
        deliver_days(context, reached.meters, days, reporting, progress, leftovers=True)
        # What an interrupted run left unverified would blur what later summaries can prove.
        verify(context.gateway, context.ledger, reached.meters, days, context.clock)
    to_plan, recent = list(days), Recent(context)
    for _ in range(MOST_SEGMENTS):
        unfinished, payers = [], context.payers()
        for number, day in enumerate(to_plan, start=1):
            if _plan(
                context, reached.meters, payers, day, reporting, recent,
                retry_rejected=retry_rejected, report_undone=report_undone,
            ):  # fmt: skip
                unfinished.append(day)
            if progress is not None:
                progress("planning", number, len(to_plan))
        if reached.unreachable is not None:
            reporting.stopped = f"Stripe cannot be reached: {reached.unreachable}"
        elif reporting.stopped is None:
            deliver_days(context, reached.meters, to_plan, reporting, progress)
        if reporting.stopped is not None or not unfinished:
            break
        to_plan = unfinished  # the next segments of split days, now that these are resolved
    return reporting


def apply_events(context: Context, progress: Progress | None = None) -> Applied:
    """Apply the Stripe events that are due. Raises ConfigurationError without a key."""

    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress("applying", done, total)

    return apply_due(context.inbox, context.ledger, context.gateway, context.clock, watch)


def deliver_days(
    context: Context,
    meters: Sequence[Meter],
    days: Sequence[date],
    reporting: ReportOutcome,
    progress: Progress | None,
    *,
    leftovers: bool = False,
) -> DeliveryReport:
    """Deliver what is planned for these days, and add what that did to the report.

    `leftovers`: only what earlier runs left unresolved.
    """

    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress("delivering", done, total)

    report = deliver(
        context.gateway,
        context.ledger,
        meters,
        days,
        context.clock,
        watch,
        payers=context.payers(),
        leftovers=leftovers,
    )
    reporting.sent += report.sent
    reporting.stopped = reporting.stopped or report.stopped
    reporting.denied = reporting.denied or report.denied
    return report


def _plan(
    context: Context,
    meters: Sequence[Meter],
    payers: Payers,
    day: date,
    reporting: ReportOutcome,
    recent: Recent,
    *,
    retry_rejected: bool,
    report_undone: bool,
) -> bool:
    """Plan one day and write the plan down; True if another round has more of it to report."""
    names = {meter.event_name for meter in meters}
    try:
        boundaries = period_boundaries(context, meters, payers, day)
        if _is_at_rest(context, names, payers, day, boundaries, reporting):
            return False
        segments_of = read_segments(context, day, boundaries)
        with context.ledger.planning() as connection:
            # Read inside: whoever planned before us may have planned from an older snapshot.
            snapshot = context.usage.snapshot(day)
            partly = snapshot is None and bool(segments_of) and not is_over(day, context.clock())
            why_not = None if partly else _unplannable(snapshot, segments_of)
            if why_not is not None:
                reporting.not_planned[day] = why_not
                return False
            usage = {} if snapshot is None else usage_by_organization(snapshot)
            recorded = context.ledger.recorded([day], connection)[day]
            findings, undone = [], set[Cell]()
            if snapshot is not None:
                undone = context.ledger.still_undone(
                    connection, day, None if report_undone else snapshot.snapshot_id
                )
                approved = context.ledger.gate_approved(day, snapshot.snapshot_id, connection)
                findings = judge_gate(context, snapshot, recent, approved)
            plan = plan_day(
                day,
                meters,
                usage,
                payers,
                recorded,
                context.clock(),
                segments_of=segments_of,
                only_split=partly,
                gated=behind_gate(findings),
                undone=undone,
                adjustments=context.adjustments.adjustments([day], connection)[day],
                retry_rejected=retry_rejected,
            )
            context.ledger.write_plan(
                connection,
                plan,
                lambda cell: (
                    cell.event_name in names and (not partly or cell.organization_id in segments_of)
                ),
                None if snapshot is None else snapshot.snapshot_id,
                context.clock(),
                basis=(
                    None
                    if snapshot is None
                    else _basis(context, payers, day, snapshot.snapshot_id, boundaries)
                ),
                inputs=None if snapshot is None else snapshot.counted.brief(),
                meters=names,
            )
    except DAY_ERRORS as error:
        reporting.not_planned[day] = f"its snapshot cannot be read: {error}"
        return False
    reporting.gates.pop(day, None)
    if findings:
        reporting.gates[day] = findings
    reporting.planned_from[day] = "" if snapshot is None else snapshot.snapshot_id
    return bool(plan.unfinished)


def _is_at_rest(
    context: Context,
    meters: set[str],
    payers: Payers,
    day: date,
    boundaries: Mapping[str, set[int]],
    reporting: ReportOutcome,
) -> bool:
    """Whether planning the day again would change nothing; tells the report so.

    Most days of a backfill are, and their cells need not be looked at one by one.
    """
    snapshot_id = context.usage.snapshot_id(day)
    if snapshot_id is None:
        return False
    basis = _basis(context, payers, day, snapshot_id, boundaries)
    if not context.ledger.is_at_rest(day, basis, meters):
        return False
    reporting.gates.pop(day, None)
    reporting.planned_from[day] = snapshot_id
    return True


class Recent:
    """The usage of days before a day, each snapshot read once."""

    def __init__(self, context: Context) -> None:
        self._open = context
        self._known: dict[date, dict[str, Usage] | None] = {}

    def before(self, day: date) -> list[dict[str, Usage]]:
        """Usage by organization of the recent days that were counted.

        A day whose snapshot cannot be read is left out: that is its own error, not this day's.
        """
        days = [
            day - timedelta(days=n)
            for n in range(1, self._open.settings.billing_gates.recent_days + 1)
        ]
        for each in days:
            if each not in self._known:
                self._known[each] = None
                with suppress(*DAY_ERRORS):
                    if (snapshot := self._open.usage.snapshot(each)) is not None:
                        self._known[each] = usage_by_organization(snapshot)
        return [usage for each in days if (usage := self._known[each]) is not None]


class _EveryOrganization:
    """Contains every organization."""

    def __contains__(self, _organization: object) -> bool:
        return True


def behind_gate(findings: Sequence[Finding]) -> Container[str]:
    """The organizations whose usage waits at the gate."""
    names = [finding.organization_id for finding in findings]
    return _EveryOrganization() if None in names else [name for name in names if name is not None]


def judge_gate(
    context: Context, snapshot: Snapshot, recent: Recent, approved: str | None
) -> list[Finding]:
    """What is implausible about a day, unless a person approved it."""
    if approved is not None:
        return []
    before = recent.before(snapshot.usage_day)
    return implausible(usage_by_organization(snapshot), before, context.settings.billing_gates)


@dataclass(frozen=True)
class ClosedGate:
    """A day that waits at the gate, with what is implausible about it."""

    day: date
    snapshot_id: str
    findings: list[Finding]


def closed_gates(context: Context, days: Sequence[date] | None = None) -> list[ClosedGate]:
    """The days (None: all) whose counts wait for a person. Raises DAY_ERRORS."""
    recent, found = Recent(context), []
    for day in context.inquiry.gated() if days is None else days:
        snapshot = context.usage.snapshot(day)
        if snapshot is None:
            continue
        approved = context.ledger.gate_approved(day, snapshot.snapshot_id)
        if findings := judge_gate(context, snapshot, recent, approved):
            found.append(ClosedGate(day, snapshot.snapshot_id, findings))
    return found


def approve_gate(context: Context, day: date, reason: str) -> list[Finding]:
    """Let a day through as it was counted; returns what was implausible about it.

    A later count of other readings is judged again. Raises ConfigurationError when the day does
    not wait at the gate, or no reason is given.
    """
    if not reason.strip():
        raise ConfigurationError("an approval needs a reason: it stays on record")
    found = closed_gates(context, [day])
    if not found:
        raise ConfigurationError(
            f"the gate of {day} is open, or the day is not counted: there is nothing to approve"
        )
    context.ledger.approve_gate(day, found[0].snapshot_id, reason.strip(), context.clock())
    return found[0].findings


def _unplannable(
    snapshot: Snapshot | None, segments_of: Mapping[str, Sequence[Segment]]
) -> str | None:
    """Why a day cannot be planned from its snapshot, None where it can."""
    if snapshot is None:
        return NO_SNAPSHOT
    usage = usage_by_organization(snapshot)
    for organization, segments in segments_of.items():
        segments = sum(segment.usage.reading_volume for segment in segments)
        if segments != usage.get(organization, Usage()).reading_volume:
            return READINGS_CHANGED
    return None


def read_segments(
    context: Context, day: date, all_cuts: Mapping[str, set[int]]
) -> dict[str, list[Segment]]:
    """The segments of the organizations whose billing periods end inside this day.

    Of a day that is not over, only the segments that have ended. Raises DAY_ERRORS.
    """
    segments: dict[str, list[tuple[int, int]]] = {}
    now, midnight = context.clock().timestamp(), day_start(day)
    for organization, boundaries in all_cuts.items():
        ended = [(start, end) for start, end in segment_bounds(day, boundaries) if end <= now]
        if ended:
            segments[organization] = [(start - midnight, end - midnight) for start, end in ended]
    if not segments:
        return {}
    counted = context.usage.in_segments(day, segments)
    return {
        organization: [
            Segment(midnight + start, midnight + end, Usage(active, volume))
            for (start, end), (active, volume) in zip(spans, counted[organization], strict=True)
        ]
        for organization, spans in segments.items()
    }


def period_boundaries(
    context: Context, meters: Sequence[Meter], payers: Payers, day: date
) -> dict[str, set[int]]:
    """The instants inside the day at which an organization's periods end (unix seconds)."""
    span = day_start(day), day_end(day)
    by_customer = {
        customer: instants
        for customer, eligibility in payers.eligibility.items()
        if (instants := {i for m in meters for i in eligibility.boundaries(m.meter_id, *span)})
    }
    if not by_customer:
        return {}
    pays = [*payers.customers.items(), *context.ledger.reported_for(day, by_customer)]
    boundaries: dict[str, set[int]] = defaultdict(set)
    for organization, customer in pays:
        if customer in by_customer:
            boundaries[organization] |= by_customer[customer]
    return dict(boundaries)


def _basis(
    context: Context,
    payers: Payers,
    day: date,
    snapshot_id: str,
    boundaries: Mapping[str, set[int]],
) -> str:
    """What a day is planned from, as one id: its snapshot, how it is split, and who pays.

    The active sensors of a part also depend on the day before the snapshot's window. An
    organization that gets a customer later owes its zeros too, of which nothing is held.
    """
    before = context.usage.before_window(day) if boundaries else None
    segments = {organization: sorted(instants) for organization, instants in boundaries.items()}
    content = json.dumps([snapshot_id, payers.mapping_id, before, segments], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def planned_basis(context: Context, day: date, snapshot_id: str) -> str:
    """What a day would be planned from now; `Inquiry.planned_from` has what it was planned from."""
    meters = context.ledger.known_meters(context.settings.billing_meters)
    payers = context.payers()
    boundaries = period_boundaries(context, meters, payers, day)
    return _basis(context, payers, day, snapshot_id, boundaries)


def usage_by_organization(snapshot: Snapshot) -> dict[str, Usage]:
    """A snapshot's counts, by organization."""
    return {
        o.organization_id: Usage(o.active_sensors, o.reading_volume) for o in snapshot.organizations
    }


def unfinished_days(context: Context) -> list[date]:
    """Days that a new run from their present snapshots would bring further.

    A snapshot not planned from yet, an event whose outcome is open, usage that was held or
    refused and would be reported now, or that waits at a gate which has opened by itself.
    """
    today = context.clock().date()
    meters = context.ledger.known_meters(context.settings.billing_meters)
    payers = context.payers()
    found = context.inquiry.open_days(today - VERIFIABLE) | _released(context, meters, payers)
    found |= _let_through(context)
    planned_from = context.inquiry.planned_from()
    found |= {day for day, basis in planned_from.items() if not basis and _is_whole(context, day)}
    first = max(today - OLDEST, context.settings.billing_start_day)
    for n in range((today - first).days):
        day = first + timedelta(days=n)
        with suppress(*DAY_ERRORS):  # an unreadable snapshot is not current: it is counted again
            snapshot_id = context.usage.snapshot_id(day)
            if snapshot_id is not None:
                boundaries = period_boundaries(context, meters, payers, day)
                if _basis(context, payers, day, snapshot_id, boundaries) != planned_from.get(day):
                    found.add(day)
    return sorted(found)


def _is_whole(context: Context, day: date) -> bool:
    """Whether there is a snapshot of the day to plan from."""
    try:
        return context.usage.snapshot_id(day) is not None
    except DAY_ERRORS:  # it is to be counted again first
        return False


def _let_through(context: Context) -> set[date]:
    """Days with usage behind a gate that is open now: the days it is compared with have changed."""
    waiting, found = context.inquiry.gated(), set()
    recent = Recent(context)
    for day, organizations in waiting.items():
        with suppress(*DAY_ERRORS):  # such a day is counted again first
            snapshot = context.usage.snapshot(day)
            if snapshot is not None:
                approved = context.ledger.gate_approved(day, snapshot.snapshot_id)
                behind = behind_gate(judge_gate(context, snapshot, recent, approved))
                if any(organization not in behind for organization in organizations):
                    found.add(day)
    return found


def _released(context: Context, meters: Sequence[Meter], payers: Payers) -> set[date]:
    """Days with usage that was held or refused, and that the rules would state or hold
    for another reason now."""
    by_name = {meter.event_name: meter for meter in meters}
    left_out: dict[date, list[LeftOut]] = defaultdict(list)
    for each in context.inquiry.left_out():
        left_out[each.cell.usage_day].append(each)
    recorded, adjustments = (
        context.ledger.recorded(list(left_out)),
        context.adjustments.adjustments(list(left_out)),
    )
    found, now = set(), context.clock().timestamp()
    for day, items in left_out.items():
        boundaries = period_boundaries(context, meters, payers, day)
        undone = context.inquiry.undone(day)
        counted: dict[str, Usage] | None = None
        again: dict[str, list[Segment]] = {}
        with suppress(*DAY_ERRORS):  # such a day is counted again first
            snapshot = context.usage.snapshot(day)
            counted = None if snapshot is None else usage_by_organization(snapshot)
            refused = {item.cell.organization_id for item in items if item.was_refused}
            again = read_segments(
                context, day, {o: boundaries[o] for o in refused & boundaries.keys()}
            )
        shared = {
            m.event_name: shared_customers(m, payers.customers, recorded[day]) for m in meters
        }
        for item in items:
            meter = by_name.get(item.cell.event_name)
            if meter is None or day in found:
                continue
            organization = item.cell.organization_id
            customer = payers.customers.get(organization)
            segments = segment_bounds(day, boundaries.get(item.cell.organization_id, ()))
            segment = [
                (start, end)
                for start, end in segments
                if (item.instant is None or start <= item.instant < end) and end <= now
            ]
            if not segment:
                continue  # its part of today is not over
            start, end = segment[-1]
            entries = adjustments[day].get(item.cell, [])
            segment = next((s for s in again.get(organization, ()) if s.start == start), None)
            if segment is not None:
                usage = segment.usage
            elif counted is not None and len(segments) == 1:
                usage = counted.get(organization, Usage())
            else:
                # A part that is held is not counted again for asking. What adjustments took back
                # from it is in its target already.
                usage = usage_of(meter.measure, max(0, item.target))
                entries = [Entry(item.cell, start, min(0, item.target))]
            outcomes = plan_segments(
                meter,
                item.cell,
                [Segment(start, end, usage)],
                customer,
                recorded[day].get(item.cell, ()),
                context.clock(),
                shared=customer in shared[meter.event_name],
                undone=item.cell in undone,
                payers=payers,
                adjustments=entries,
            )
            if any(
                isinstance(each, MeterEvent)
                or (isinstance(each, Hold) and each.reason not in item.hold_reason)
                for each in outcomes
            ):
                found.add(day)
    return found


def unbilled(context: Context) -> list[dict[str, Any]]:
    """Events that Stripe took for a period whose invoice was final by then: no invoice has them.

    This can happen while the news of a final invoice is on its way. Where an event was tried
    before and after, `certain` is False: only the invoice tells.
    """
    periods: dict[Closed, list[FinalPeriod]] = defaultdict(list)
    for period in context.customers.final_periods():
        closed = Closed(period.customer, period.start, period.end, period.finalized_at)
        periods[closed].append(period)
    return [
        {**event, "invoice": period.invoice_id, "finalized_at": period.finalized_at.isoformat()}
        for closed, event in context.inquiry.accepted_after(list(periods))
        for period in periods[closed]
    ]


def closing_days(context: Context) -> dict[date, list[str]]:
    """The days of periods whose invoice is a draft, with the invoices they are for.

    Only those with something missing: a snapshot of what lies there now, a report from it,
    an outcome, a verification. The day on which the period ended is always asked for while it
    lasts, as its readings may still come. Days that Stripe takes nothing for any more are left out.
    """
    now = context.clock()
    first = max((now - OLDEST).date(), context.settings.billing_start_day)
    wanted: dict[date, list[str]] = defaultdict(list)
    for period in context.customers.closing_periods():
        day = max(datetime.fromtimestamp(period.start, UTC).date(), first)
        while day_start(day) < period.end <= now.timestamp():
            wanted[day].append(period.invoice_id)
            day += timedelta(days=1)
    unfinished = set(unfinished_days(context)) if wanted else set()
    return {
        day: invoices
        for day, invoices in sorted(wanted.items())
        if day in unfinished or not is_over(day, now) or not _is_counted(context, day)
    }


def ends_inside(context: Context, day: date) -> bool:
    """Whether a billing period has ended inside this day, so that a part of it can be reported."""
    meters = context.ledger.known_meters(context.settings.billing_meters)
    now = context.clock().timestamp()
    boundaries = period_boundaries(context, meters, context.payers(), day)
    return any(boundary <= now for instants in boundaries.values() for boundary in instants)


def _is_counted(context: Context, day: date) -> bool:
    """Whether the day's snapshot is whole and says what its files say now."""
    try:
        return context.usage.is_current(day)
    except DAY_ERRORS:  # the run that this asks for will say so, on its day
        return False


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

    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress("verifying", done, total)

    reached = contact(context)
    if reached.unreachable is not None:
        return VerificationReport(unread=[reached.unreachable])
    return verify(
        context.gateway,
        context.ledger,
        reached.meters,
        days,
        context.clock,
        wait_seconds=wait_seconds,
        everything=everything,
        progress=watch,
    )
