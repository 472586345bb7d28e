"""State a span of usage days: the one use case that joins the rooms.

    snapshot, customers, ledger → plan → ledger → delivery → verification

The Dagster assets, `billing run` and `billing plan` all come through here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from billing_pipeline.customers import CustomerDirectory
from billing_pipeline.database import open_database
from billing_pipeline.ledger import Inquiry, Ledger
from billing_pipeline.metering import DayPlan, Meter, Said, Usage, plan_day, standing
from billing_pipeline.settings import Settings
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
from billing_pipeline.usage import Engine, Folder, load_snapshot

Clock = Callable[[], datetime]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


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
            Engine(settings.memory_limit),
            Folder(settings.billing_readings_uri),
            Folder(settings.billing_snapshots_uri),
            Ledger(database, run),
            Inquiry(database),
            CustomerDirectory(database),
            StripeGateway(settings),
            clock,
        )

    def reporter(self) -> UsageReporter:
        """The Python API for single counts, over the same ledger and customers."""
        return UsageReporter(
            self.gateway,
            self.ledger,
            self.settings.billing_meters,
            self.customers.mapping,
            self.clock,
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
    without_snapshot: list[date] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Lines of the customers file that were left out."""


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

    What an earlier run left unsettled or unverified comes first: its cells wait for it.
    Raises ConfigurationError before anything is planned or sent.
    """
    statement = Statement()
    if rooms.settings.billing_customers_file is not None:
        report = rooms.customers.import_file(rooms.settings.billing_customers_file, rooms.clock())
        statement.problems = report.problems
    reached = contact(rooms)
    if reached.unreachable is None:
        _deliver(rooms, reached.meters, days, statement, progress, leftovers=True)
        # What an interrupted run left unverified would blur what later summaries can prove.
        verify(rooms.gateway, rooms.ledger, reached.meters, days, rooms.clock)
    for number, day in enumerate(days, start=1):
        if not _plan(rooms, reached.meters, day, retry_rejected):
            statement.without_snapshot.append(day)
        if progress is not None:
            progress("planning", number, len(days))
    if reached.unreachable is not None:
        statement.stopped = f"Stripe cannot be reached: {reached.unreachable}"
    elif statement.stopped is None:
        _deliver(rooms, reached.meters, days, statement, progress)
    return statement


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


def _plan(rooms: Rooms, meters: Sequence[Meter], day: date, retry_rejected: bool) -> bool:
    """Plan one day and write the plan down; False where no snapshot was taken."""
    names = {meter.event_name for meter in meters}
    with rooms.ledger.planning() as connection:
        # Read inside: whoever planned before us may have planned from an older snapshot.
        usage, snapshot_id = _usage(rooms, day)
        if usage is None:
            return False
        plan = plan_day(
            day,
            meters,
            usage,
            rooms.customers.mapping(),
            rooms.ledger.said([day], connection)[day],
            rooms.clock(),
            retry_rejected=retry_rejected,
        )
        rooms.ledger.write_plan(
            connection, plan, lambda cell: cell.event_name in names, snapshot_id, rooms.clock()
        )
    return True


def _usage(rooms: Rooms, day: date) -> tuple[dict[str, Usage] | None, str | None]:
    snapshot = load_snapshot(rooms.engine, rooms.snapshots, day)
    if snapshot is None:
        return None, None
    usage = {
        o.organization_id: Usage(o.active_sensors, o.reading_volume) for o in snapshot.organizations
    }
    return usage, snapshot.snapshot_id


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
    customers = rooms.customers.mapping(rooms.settings.billing_customers_file)
    said = rooms.ledger.said(days)
    lines, missing = [], []
    for day in days:
        usage, _ = _usage(rooms, day)
        if usage is None:
            missing.append(day)
            continue
        plan = plan_day(
            day, meters, usage, customers, said[day], rooms.clock(), retry_rejected=retry_rejected
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
