"""State a span of usage days: the one use case that joins the rooms.

    what Stripe said → snapshot, customers, ledger → plan → ledger → delivery → verification

The Dagster assets, `billing run` and `billing plan` all come through here.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

from billing_pipeline.customers import CustomerDirectory
from billing_pipeline.database import open_database
from billing_pipeline.ledger import Inquiry, Ledger
from billing_pipeline.metering import DayPlan, Meter, Payers, Said, Usage, plan_day, standing
from billing_pipeline.metering.timestamps import OLDEST, day_start, is_over
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_events import Applied, Inbox, apply_due
from billing_pipeline.stripe_meters import (
    DeliveryReport,
    StripeGateway,
    StripeUnreachable,
    UsageReporter,
    VerificationReport,
    deliver,
    look_up,
    verify,
)
from billing_pipeline.usage import (
    DAY_ERRORS,
    Engine,
    Folder,
    Snapshot,
    is_current,
    load_snapshot,
    snapshot_id_of,
)

Clock = Callable[[], datetime]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


NO_SNAPSHOT = "no usage snapshot was taken after the day's end: materialize usage_snapshot first"

VERIFIABLE = timedelta(days=41)
"""How long accepted events are asked for again: a week longer than anything can be stated."""


def utc_now() -> datetime:
    """The clock of production."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Rooms:
    """Everything a statement needs, opened once. `run` names who acts, in the ledger."""

    settings: Settings
    engine: Engine
    readings: Folder
    snapshots: Folder
    ledger: Ledger
    inquiry: Inquiry
    customers: CustomerDirectory
    inbox: Inbox
    gateway: StripeGateway
    clock: Clock

    @classmethod
    def open(cls, settings: Settings, run: str, clock: Clock = utc_now) -> Rooms:
        """Open the database (bringing its schema up to date); contacts nobody else.

        Raises ConfigurationError.
        """
        database = open_database(settings.billing_database_url.get_secret_value())
        return cls(
            settings,
            Engine(settings.memory_limit, clock),
            Folder(settings.billing_readings_uri),
            Folder(settings.billing_snapshots_uri),
            Ledger(database, run),
            Inquiry(database),
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
            self.settings.billing_meters,
            self.payers,
            self.clock,
        )

    def payers(self) -> Payers:
        """Who pays today, and on which terms; the customers file counts as imported."""
        return self.customers.payers(
            self.settings.subscription_policy, self.settings.billing_customers_file
        )


@dataclass
class Statement:
    """What stating a span of days did."""

    sent: int = 0
    """Requests that Stripe accepted."""
    stopped: str | None = None
    """Why delivery ended early (Stripe unreachable, key refused); the rest stays planned."""
    denied: bool = False
    """Whether it was the key, which only a person can mend."""
    planned_from: dict[date, str] = field(default_factory=dict)
    """The snapshot each planned day was planned from."""
    not_planned: dict[date, str] = field(default_factory=dict)
    """Why a day was not planned: no whole snapshot, or one that cannot be read."""
    problems: list[str] = field(default_factory=list)
    """Lines of the customers file that were left out."""
    applied: Applied = field(default_factory=Applied)
    """What became of the events of Stripe's that were waiting."""


@dataclass(frozen=True)
class PlanLine:
    """One line of a preview: what would happen to one cell, and why."""

    day: date
    organization_id: str
    meter: str
    action: str
    before: int | None
    target: int
    value: int
    detail: str

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**vars(self), "day": self.day.isoformat()}


@dataclass(frozen=True)
class Contact:
    """The meters to state to, and whether Stripe was reached to look at them."""

    meters: Sequence[Meter]
    unreachable: str | None = None


def contact(rooms: Rooms) -> Contact:
    """Look the meters up and bind the ledger; without an answer, the meters as last seen.

    First statements are the same for every meter we accept, and corrections need a meter that
    was seen before; so planning without Stripe plans what planning with it would.
    Raises ConfigurationError for what must be mended before anything is sent.
    """
    specs = rooms.settings.billing_meters
    try:
        catalogue = asyncio.run(look_up(rooms.gateway, specs))
    except StripeUnreachable as error:
        return Contact(rooms.ledger.known_meters(specs), str(error))
    rooms.ledger.bind(catalogue.account_id, catalogue.livemode, catalogue.meters, rooms.clock())
    return Contact(catalogue.meters)


def state_days(
    rooms: Rooms,
    days: Sequence[date],
    *,
    retry_rejected: bool = False,
    progress: Progress | None = None,
) -> Statement:
    """Plan and deliver these days from their snapshots.

    What Stripe has said meanwhile comes first (a mapping, a cancellation, a closed period), then
    what an earlier run left unsettled or unverified: its cells wait for it.
    Raises ConfigurationError before anything is planned or sent.
    """
    statement = Statement()
    if rooms.settings.billing_customers_file is not None:
        report = rooms.customers.import_file(rooms.settings.billing_customers_file, rooms.clock())
        statement.problems = report.problems
    reached = contact(rooms)
    statement.applied = apply_events(rooms, progress)
    if reached.unreachable is None:
        _deliver(rooms, reached.meters, days, statement, progress, leftovers=True)
        # What an interrupted run left unverified would blur what later summaries can prove.
        verify(rooms.gateway, rooms.ledger, reached.meters, days, rooms.clock)
    for number, day in enumerate(days, start=1):
        try:
            snapshot_id = _plan(rooms, reached.meters, day, retry_rejected)
        except DAY_ERRORS as error:
            statement.not_planned[day] = f"its snapshot cannot be read: {error}"
        else:
            if snapshot_id is None:
                statement.not_planned[day] = NO_SNAPSHOT
            else:
                statement.planned_from[day] = snapshot_id
        if progress is not None:
            progress("planning", number, len(days))
    if reached.unreachable is not None:
        statement.stopped = f"Stripe cannot be reached: {reached.unreachable}"
    elif statement.stopped is None:
        _deliver(rooms, reached.meters, days, statement, progress)
    return statement


def apply_events(rooms: Rooms, progress: Progress | None = None) -> Applied:
    """Apply the events of Stripe's that are due. Raises ConfigurationError without a key."""

    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress("applying", done, total)

    return apply_due(rooms.inbox, rooms.ledger, rooms.gateway, rooms.clock, watch)


def _deliver(
    rooms: Rooms,
    meters: Sequence[Meter],
    days: Sequence[date],
    statement: Statement,
    progress: Progress | None,
    *,
    leftovers: bool = False,
) -> DeliveryReport:
    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress("delivering", done, total)

    report = deliver(
        rooms.gateway, rooms.ledger, meters, days, rooms.clock, watch, leftovers=leftovers
    )
    statement.sent += report.sent
    statement.stopped = statement.stopped or report.stopped
    statement.denied = statement.denied or report.denied
    return report


def _plan(rooms: Rooms, meters: Sequence[Meter], day: date, retry_rejected: bool) -> str | None:
    """Plan one day and write the plan down; the snapshot's id, None where there is none."""
    names = {meter.event_name for meter in meters}
    with rooms.ledger.planning() as connection:
        # Read inside: whoever planned before us may have planned from an older snapshot.
        snapshot = _whole_snapshot(rooms, day)
        if snapshot is None:
            return None
        plan = plan_day(
            day,
            meters,
            _usage(snapshot),
            rooms.payers(),
            rooms.ledger.said([day], connection)[day],
            rooms.clock(),
            retry_rejected=retry_rejected,
        )
        rooms.ledger.write_plan(
            connection,
            plan,
            lambda cell: cell.event_name in names,
            snapshot.snapshot_id,
            rooms.clock(),
        )
    return snapshot.snapshot_id


def _whole_snapshot(rooms: Rooms, day: date) -> Snapshot | None:
    """The day's snapshot, if it was taken after the day had ended."""
    snapshot = load_snapshot(rooms.engine, rooms.snapshots, day)
    return snapshot if snapshot is not None and snapshot.is_whole else None


def _usage(snapshot: Snapshot) -> dict[str, Usage]:
    return {
        o.organization_id: Usage(o.active_sensors, o.reading_volume) for o in snapshot.organizations
    }


def unfinished_days(rooms: Rooms) -> list[date]:
    """Days that a new run from their present snapshots would bring further.

    A snapshot not planned from yet, an event whose outcome is open, usage whose hold or refusal
    a changed mapping has lifted.
    """
    today = rooms.clock().date()
    meters = {m.event_name: m for m in rooms.ledger.known_meters(rooms.settings.billing_meters)}
    found = rooms.inquiry.unfinished_days(rooms.payers(), meters, today - VERIFIABLE)
    planned_from = rooms.inquiry.planned_from()
    first = max(today - OLDEST, rooms.settings.billing_start_day)
    for n in range((today - first).days):
        day = first + timedelta(days=n)
        with suppress(*DAY_ERRORS):  # an unreadable snapshot is not current: it is counted anew
            snapshot_id = snapshot_id_of(rooms.engine, rooms.snapshots, day)
            if snapshot_id is not None and snapshot_id != planned_from.get(day):
                found.add(day)
    return sorted(found)


def closing_days(rooms: Rooms) -> dict[date, list[str]]:
    """The finished days of periods whose invoice is a draft, with the invoices they are for.

    Only those with something missing: a snapshot of what lies there now, a statement from it,
    an outcome, a verification. Days that Stripe takes nothing for any more are left out.
    """
    now = rooms.clock()
    first = max((now - OLDEST).date(), rooms.settings.billing_start_day)
    wanted: dict[date, list[str]] = defaultdict(list)
    for period in rooms.customers.closing_periods():
        day = max(datetime.fromtimestamp(period.start, UTC).date(), first)
        while day_start(day) < period.end and is_over(day, now):
            wanted[day].append(period.invoice_id)
            day += timedelta(days=1)
    unfinished = set(unfinished_days(rooms)) if wanted else set()
    return {
        day: invoices
        for day, invoices in sorted(wanted.items())
        if day in unfinished or not _is_counted(rooms, day)
    }


def _is_counted(rooms: Rooms, day: date) -> bool:
    """Whether the day's snapshot is whole and says what its files say now."""
    try:
        return is_current(
            rooms.engine,
            rooms.readings,
            rooms.snapshots,
            day,
            window_days=rooms.settings.billing_active_window_days,
        )
    except DAY_ERRORS:  # the run that this asks for will say so, on its day
        return False


def preview_days(
    rooms: Rooms, days: Sequence[date], *, retry_rejected: bool = False
) -> tuple[list[PlanLine], list[date]]:
    """What `state_days` would plan now, and the days without a snapshot; writes nothing.

    Asks Stripe for its meters where there is a key and an answer, else takes them as last seen.
    """
    specs = rooms.settings.billing_meters
    meters: Sequence[Meter] = rooms.ledger.known_meters(specs)
    if rooms.settings.stripe_secret_key is not None:
        with suppress(StripeUnreachable):  # then as last seen will do for a preview
            meters = asyncio.run(look_up(rooms.gateway, specs)).meters
    payers = rooms.payers()
    said = rooms.ledger.said(days)
    lines, missing = [], []
    for day in days:
        snapshot = _whole_snapshot(rooms, day)
        if snapshot is None:
            missing.append(day)
            continue
        plan = plan_day(
            day,
            meters,
            _usage(snapshot),
            payers,
            said[day],
            rooms.clock(),
            retry_rejected=retry_rejected,
        )
        lines += _lines(plan, meters, said[day])
    return lines, missing


def _lines(plan: DayPlan, meters: Sequence[Meter], said: dict[Any, list[Said]]) -> list[PlanLine]:
    by_name = {meter.event_name: meter for meter in meters}

    def line(planned: Any, action: str, value: int, detail: str) -> PlanLine:
        cell = planned.cell
        before = standing(by_name[cell.event_name], said.get(cell, ()))
        return PlanLine(
            plan.usage_day,
            cell.organization_id,
            cell.event_name,
            action,
            before,
            planned.target,
            value,
            detail,
        )

    lines = [
        line(e, "state" if e.revision == 1 else "correct", e.value, f"revision {e.revision}")
        for e in plan.events
    ]
    lines += [line(h, "hold", h.value, f"{h.reason}: {h.explanation}") for h in plan.holds]
    lines += [line(w, "wait", 0, "an earlier event is not settled yet") for w in plan.waiting]
    return sorted(lines, key=lambda each: (each.day, each.organization_id, each.meter))


def verify_days(
    rooms: Rooms,
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

    reached = contact(rooms)
    if reached.unreachable is not None:
        return VerificationReport(unread=[reached.unreachable])
    return verify(
        rooms.gateway,
        rooms.ledger,
        reached.meters,
        days,
        rooms.clock,
        wait_seconds=wait_seconds,
        everything=everything,
        progress=watch,
    )


def with_snapshots_in(rooms: Rooms, uri: str) -> Rooms:
    """The same rooms with snapshots elsewhere, so that a dry run leaves the real ones alone."""
    return replace(rooms, snapshots=Folder(uri))
