"""The ledger's transactions: bind, plan, claim, record, verify. Each public method is one.

Two processes may plan the same day at once: planning is serialized (SQLite by BEGIN IMMEDIATE,
PostgreSQL by an advisory lock), and the table itself refuses a second event for a revision or
a second unresolved event for a cell. Delivery is serialized by `Ledger.delivering`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
    update,
)

from billing_pipeline.database import upsert, upsert_all, writing
from billing_pipeline.ledger.locks import WAIT_SECONDS, delivery_lock
from billing_pipeline.ledger.tables import (
    account,
    adjustment_entries,
    gate_approvals,
    held_usage,
    history,
    meter_errors,
    meter_events,
    meters,
    planned_days,
    runs,
    stripe_reads,
    undone_cells,
    verifications,
)
from billing_pipeline.rules.agreement import CLOCKS_APART, TAKE_BACK_AFTER, Agreement
from billing_pipeline.rules.model import (
    NOT_COUNTED,
    SENT,
    Cell,
    Formula,
    Measure,
    Meter,
    MeterEvent,
    MeterSpec,
    RecordedEvent,
    State,
)
from billing_pipeline.rules.planning import (
    HARMLESS,
    SUPERSEDED,
    DayPlan,
)
from billing_pipeline.rules.segments import segment_bounds
from billing_pipeline.settings import ConfigurationError

CUSTOMER_UNKNOWN = "meter_event_customer_not_found"
PLANNING_KEY = 7205133
READS_KEY = 7205134
MODES = {True: "live", False: "test"}
CHUNK = 500
"""Rows changed per report, well below what either database takes as parameters."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event that may be sent now, with its row id and what is known of earlier attempts."""

    id: int
    event: MeterEvent
    state: State
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt to send taught us, to be recorded."""

    id: int
    state: State
    attempts: int = 0
    request_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class ExpectedFigure:
    """What the ledger expects Stripe's summary to say of one customer, meter and day.

    Where newer values replace older ones, a day shows its last value only. If it is split, each
    part is then looked at by itself: `span` is its [start, end).
    `certain` is the value that was verified before, `pending` the values accepted since, in
    the order of their revisions; `expected` is what both come to. `last_accepted_at` tells how
    long Stripe has had time to agree.
    """

    usage_day: date
    customer: str
    event_name: str
    expected: int
    certain: int | None
    pending: tuple[int, ...]
    pending_ids: tuple[int, ...]
    pending_since: tuple[datetime, ...]
    last_accepted_at: datetime
    timestamp: int
    """Of the newest event (unix seconds)."""
    span: tuple[int, int] | None = None

    @property
    def has_changed(self) -> bool:
        """Whether something was reported after a value of the same day had been reported."""
        return bool(self.pending) and (self.certain is not None or len(self.pending) > 1)


@dataclass(frozen=True, slots=True)
class Before:
    """What came before an instant on a meter that keeps one value.

    `newest` is what Stripe took last. `value` is the newest that its summary has shown (0: none),
    and `followed_by` are those after it that it may hold or not. `since` is the instant (unix
    seconds) of the first of all these, `last_accepted_at` when Stripe took the latest of
    `followed_by`, None where it took none.
    """

    newest: int
    value: int
    since: int
    followed_by: tuple[int, ...]
    last_accepted_at: datetime | None


@dataclass(frozen=True, slots=True)
class ReportedError:
    """One kind of error in a report: how many events, and the samples that name some of them."""

    code: str
    count: int
    message: str
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What Stripe says it did not count. `meter_id` is None when no such meter was found."""

    event_id: str
    meter_id: str | None
    window_start: datetime
    window_end: datetime
    errors: tuple[ReportedError, ...]


class StillSending(Exception):
    """A reported event is under way at this moment: take the report a little later."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of one look at Stripe's summary."""

    expected: ExpectedFigure
    reported: str
    outcome: str  # agrees, lagging or mismatch
    missing: tuple[int, ...] = ()
    """Ids of pending events that Stripe does not show, if it has lost any."""
    customer_gone: bool = False
    """Whether Stripe does not know the customer at all."""


class Ledger:
    """The ledger in one database. `run` names who acts, and stands on every change."""

    def __init__(self, engine: Engine, run: str) -> None:
        self.engine = engine
        self.run = run
        self.delivery_wait_seconds = WAIT_SECONDS

    def begin(self, who: str, reason: str, now: datetime, *, undoes: str | None = None) -> None:
        """Remember who runs this, why, and which run it undoes, if it does."""
        with writing(self.engine) as connection:
            upsert(
                connection,
                runs,
                {"run": self.run},
                {"who": who, "reason": reason, "started_at": now, "undoes": undoes},
            )

    # Whom the ledger speaks for ------------------------------------------------------------

    def bind(
        self,
        account_id: str | None,
        livemode: bool,
        found: Iterable[Meter],
        now: datetime,
    ) -> None:
        """The account guard: remember account, mode and meters, or refuse others.

        `account_id` is None when the key may not read its account; then the meters tell, whose
        ids belong to one account for ever. Raises ConfigurationError on any difference.
        """
        found = list(found)
        with writing(self.engine) as connection:
            self.guard(account_id, livemode, found, connection)
            known = {} if account_id is None else {"account_id": account_id}
            upsert(
                connection,
                account,
                {"id": 1},
                {"livemode": livemode, "seen_at": now, **known},
            )
            for meter in found:
                row = {
                    "meter_id": meter.meter_id,
                    "formula": meter.formula,
                    "event_time_window": meter.event_time_window,
                    "customer_key": meter.customer_key,
                    "value_key": meter.value_key,
                    "changed_at": meter.changed_at,
                    "seen_at": now,
                }
                upsert(connection, meters, {"event_name": meter.event_name}, row)

    def guard(
        self,
        account_id: str | None,
        livemode: bool,
        found: Iterable[Meter],
        connection: Connection | None = None,
    ) -> None:
        """Raise ConfigurationError if the ledger speaks for another account, mode or meter."""
        if connection is None:
            with self.engine.begin() as own:
                return self.guard(account_id, livemode, found, own)
        bound = connection.execute(select(account)).one_or_none()
        if bound is not None:
            _refuse_another(bound, account_id, livemode)
        known = {row.event_name: row.meter_id for row in connection.execute(select(meters))}
        for meter in found:
            earlier = known.get(meter.event_name, meter.meter_id)
            sent = select(meter_events.c.id).where(
                meter_events.c.event_name == meter.event_name,
                meter_events.c.first_attempt_at.is_not(None),
            )
            if earlier != meter.meter_id and connection.execute(sent.limit(1)).first():
                raise ConfigurationError(
                    f"the meter {meter.event_name} is {meter.meter_id} in Stripe, but this ledger "
                    f"has reported usage to {earlier}: another account, or a meter made again. "
                    "Use a ledger of its own (BILLING_DATABASE_URL)."
                )
        return None

    def not_for_us(
        self, connection: Connection, livemode: bool, account_id: str | None, key_is_live: bool
    ) -> str | None:
        """Why an event of this mode and account does not concern this ledger, None if it does.

        A ledger that never met Stripe speaks for the mode of its key (`key_is_live`).
        """
        bound = connection.execute(select(account)).one_or_none()
        ours = key_is_live if bound is None else bound.livemode
        if livemode != ours:
            return f"an event of {MODES[livemode]} mode; this ledger speaks for {MODES[ours]} mode"
        if account_id is not None and (bound is None or bound.account_id != account_id):
            return f"an event of the connected account {account_id}"
        return None

    def known_meters(self, specs: Iterable[MeterSpec]) -> list[Meter]:
        """The meters as last seen in Stripe; as specified where Stripe was never seen."""
        with self.engine.begin() as connection:
            known = {row.event_name: row for row in connection.execute(select(meters))}
        found = []
        for spec in specs:
            row = known.get(spec.event_name)
            if row is None or row.formula != spec.formula:
                found.append(Meter(spec.event_name, spec.formula, spec.measure))
            else:
                found.append(_meter(row, spec.measure))
        return found

    # Planning --------------------------------------------------------------------------------

    @contextmanager
    def planning(self) -> Iterator[Connection]:
        """A transaction in which no other process plans. Read usage inside it, not before."""
        with writing(self.engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": PLANNING_KEY}
                )
            yield connection

    def recorded(
        self, days: Sequence[date], connection: Connection | None = None
    ) -> dict[date, dict[Cell, list[RecordedEvent]]]:
        """Every event recorded about the cells of these days, in the order of revisions."""
        if connection is None:
            with self.engine.begin() as own:
                return self.recorded(days, own)
        found: dict[date, dict[Cell, list[RecordedEvent]]] = {
            day: defaultdict(list) for day in days
        }
        rows = connection.execute(
            select(meter_events)
            .where(meter_events.c.usage_day.in_(days))
            .order_by(meter_events.c.revision)
        )
        for row in rows:
            cell = Cell(row.usage_day, row.organization_id, row.event_name)
            found[row.usage_day][cell].append(
                RecordedEvent(
                    row.revision,
                    row.customer,
                    row.value,
                    row.target,
                    row.timestamp,
                    State(row.state),
                    row.error_code,
                    None if row.last_attempt_at is None else int(row.last_attempt_at.timestamp()),
                )
            )
        return found

    def reported_for(self, day: date, customers: Collection[str]) -> set[tuple[str, str]]:
        """(organization, customer) of all that was ever reported of a day to these customers."""
        columns, found = meter_events.c, set[tuple[str, str]]()
        wanted = sorted(customers)
        with self.engine.begin() as connection:
            for start in range(0, len(wanted), CHUNK):
                rows = connection.execute(
                    select(columns.organization_id, columns.customer)
                    .where(
                        columns.usage_day == day,
                        columns.customer.in_(wanted[start : start + CHUNK]),
                    )
                    .distinct()
                )
                found |= {(row.organization_id, row.customer) for row in rows}
        return found

    def write_plan(
        self,
        connection: Connection,
        plan: DayPlan,
        covers: Callable[[Cell], bool],
        snapshot_id: str | None,
        now: datetime,
        *,
        basis: str | None = None,
        inputs: str | None = None,
        meters: Collection[str] = (),
    ) -> None:
        """Write a day's plan down: events as `planned`, holds, and holds that are gone.

        `covers` tells which cells were planned; what is held of other cells is left alone.
        With a `basis` the whole day was planned from that (a snapshot, and how it was split) for
        these `meters`, and this is kept, with the `inputs` that it came from, unless the day waits
        for outcomes.
        """
        kept = self._supersede(connection, plan, now)
        self._put_to_rest(connection, plan, now)
        self._replace_holds(connection, plan, lambda cell: covers(cell) and cell not in kept, now)
        if basis is not None:
            planned_from = basis if plan.is_whole and not kept else ""
            row = {
                "snapshot_id": planned_from,
                "planned_at": now,
                "run": self.run,
                "inputs": inputs,
                "meters": json.dumps(sorted(meters)),
            }
            upsert(connection, planned_days, {"usage_day": plan.usage_day}, row)
        events = [event for event in plan.events if event.cell not in kept]
        if not events:
            return
        connection.execute(
            insert(meter_events),
            [
                {
                    "usage_day": e.cell.usage_day,
                    "organization_id": e.cell.organization_id,
                    "event_name": e.cell.event_name,
                    "revision": e.revision,
                    "identifier": e.identifier,
                    "customer": e.customer,
                    "value": e.value,
                    "target": e.target,
                    "timestamp": e.timestamp,
                    "segment_start": e.segment and e.segment[0],
                    "segment_end": e.segment and e.segment[1],
                    "snapshot_id": snapshot_id,
                    "planned_at": now,
                    "planned_by": self.run,
                    "state": State.PLANNED,
                }
                for e in events
            ],
        )
        self._remember(
            connection,
            now,
            [_change(e.cell, e.revision, None, State.PLANNED, f"value {e.value}") for e in events],
        )

    def is_at_rest(self, day: date, basis: str, meters: Collection[str]) -> bool:
        """Whether every cell of the day stands where a plan from this `basis` would put it.

        It was planned whole from just that for these meters, Stripe took all of it, nothing is
        held, refused, undone or adjusted, and nobody has reported anything else since.
        """
        known, events = planned_days.c, meter_events.c
        planned = select(planned_days).where(known.usage_day == day, known.snapshot_id == basis)
        open_states = [State.PLANNED, State.SENDING, State.AMBIGUOUS]
        harmless = func.coalesce(events.error_code, "").in_(HARMLESS)
        unrest = [
            select(events.id).where(events.usage_day == day, events.state.in_(open_states)),
            select(events.id).where(
                events.usage_day == day, events.state == State.REJECTED, ~harmless
            ),
            select(events.id)
            .join(planned_days, known.usage_day == events.usage_day)
            .where(events.usage_day == day, events.planned_at > known.planned_at),
            *(
                select(literal(1)).where(table.c.usage_day == day)
                for table in (held_usage, undone_cells, adjustment_entries)
            ),
        ]
        with self.engine.begin() as connection:
            row = connection.execute(planned).one_or_none()
            if row is None or row.meters != json.dumps(sorted(meters)):
                return False
            return not any(connection.execute(each.limit(1)).first() for each in unrest)

    def reopen(self, days: Collection[date], connection: Connection | None = None) -> None:
        """Remember that these days are to be planned again, whatever may crash before they are."""
        if connection is None:
            with writing(self.engine) as own:
                return self.reopen(days, own)
        reopen(connection, days, self.run)
        return None

    def boundary(self, connection: Connection, instants: Collection[int]) -> None:
        """Have days planned again, of any age, in which a period was learned to end (unix seconds).

        Of recent days the sensor sees that by itself; of older ones nobody would ask again.
        """
        days = {datetime.fromtimestamp(instant, UTC).date() for instant in instants}
        _forget_plans(connection, days, self.run)

    def mark_undone(
        self,
        connection: Connection,
        cells: Collection[Cell],
        snapshot_id: str,
        reason: str,
        now: datetime,
    ) -> None:
        """Remember that what was reported of these cells from this snapshot was taken back."""
        rows = [
            {
                "usage_day": cell.usage_day,
                "organization_id": cell.organization_id,
                "event_name": cell.event_name,
                "snapshot_id": snapshot_id,
                "reason": reason,
                "run": self.run,
                "undone_at": now,
            }
            for cell in cells
        ]
        key = ["usage_day", "organization_id", "event_name"]
        upsert_all(connection, undone_cells, key, rows)
        reopen(connection, {cell.usage_day for cell in cells}, self.run)

    def still_undone(self, connection: Connection, day: date, snapshot_id: str | None) -> set[Cell]:
        """The undone cells of a day while its snapshot is this one; None forgets all of them."""
        undone = undone_cells.c
        connection.execute(
            delete(undone_cells).where(
                undone.usage_day == day,
                true() if snapshot_id is None else undone.snapshot_id != snapshot_id,
            )
        )
        return {
            _cell(row)
            for row in connection.execute(select(undone_cells).where(undone.usage_day == day))
        }

    def approve_gate(self, day: date, snapshot_id: str, reason: str, now: datetime) -> None:
        """Let a day's counts through as this snapshot has them; the day is then unfinished."""
        with writing(self.engine) as connection:
            upsert(
                connection,
                gate_approvals,
                {"usage_day": day, "snapshot_id": snapshot_id},
                {"reason": reason, "run": self.run, "approved_at": now},
            )
            reopen(connection, [day], self.run)

    def gate_approved(
        self, day: date, snapshot_id: str, connection: Connection | None = None
    ) -> str | None:
        """The reason for which a person let these counts through, None if nobody did."""
        if connection is None:
            with self.engine.begin() as own:
                return self.gate_approved(day, snapshot_id, own)
        approvals = gate_approvals.c
        query = select(approvals.reason).where(
            approvals.usage_day == day, approvals.snapshot_id == snapshot_id
        )
        return connection.scalar(query)

    def _supersede(self, connection: Connection, plan: DayPlan, now: datetime) -> set[Cell]:
        """Withdraw planned events that no longer hold; returns the cells where that came too late.

        A deliverer may have claimed one since it was read; then it is under way, and its cell
        waits.
        """
        wanted = set(plan.superseded)
        if not wanted:
            return set()
        rows = connection.execute(
            select(meter_events)
            .where(
                meter_events.c.usage_day == plan.usage_day,
                meter_events.c.state == State.PLANNED,
            )
            .order_by(meter_events.c.id)
            .with_for_update()
        )
        ids = {(_cell(row), row.revision): row.id for row in rows}
        outcomes = [
            Outcome(
                ids[key],
                State.REJECTED,
                error_code=SUPERSEDED,
                error_message="never counted: replaced by a newer plan",
            )
            for key in wanted & ids.keys()
        ]
        self._change_state(connection, now, {State.PLANNED}, outcomes)
        return {cell for cell, revision in wanted - ids.keys()}

    def _put_to_rest(self, connection: Connection, plan: DayPlan, now: datetime) -> None:
        """Refusals where nothing is owed any more ask for nobody's attention."""
        if not plan.moot:
            return
        rows = connection.execute(
            select(meter_events).where(
                meter_events.c.usage_day == plan.usage_day, meter_events.c.state == State.REJECTED
            )
        )
        message = "nothing is owed any more; before: "
        outcomes = [
            Outcome(
                row.id,
                State.REJECTED,
                error_code=SUPERSEDED,
                error_message=f"{message}{row.error_code}: {row.error_message}",
            )
            for row in rows
            if (_cell(row), row.revision) in plan.moot
        ]
        self._change_state(connection, now, {State.REJECTED}, outcomes)

    def _replace_holds(
        self,
        connection: Connection,
        plan: DayPlan,
        covers: Callable[[Cell], bool],
        now: datetime,
    ) -> None:
        rows = connection.execute(
            select(held_usage).where(held_usage.c.usage_day == plan.usage_day)
        )
        before = {(_cell(row), row.start_at): row for row in rows if covers(_cell(row))}
        waiting = {w.cell for w in plan.waiting}
        holds = {(hold.cell, hold.start): hold for hold in plan.holds if covers(hold.cell)}
        reported = {event.cell for event in plan.events}
        changes = []
        for cell, start in before.keys() - holds.keys():
            if cell in waiting:
                continue
            connection.execute(
                delete(held_usage).where(*_is(held_usage, cell), held_usage.c.start_at == start)
            )
            detail = "released" if cell in reported else "withdrawn: nothing to report any more"
            changes.append(_change(cell, None, State.HELD, "released", detail))
        for (cell, start), hold in holds.items():
            earlier = before.get((cell, start))
            row = {
                "value": hold.value,
                "target": hold.target,
                "difference": hold.difference,
                "reason": hold.reason,
            }
            if earlier is None:
                connection.execute(
                    insert(held_usage).values(
                        usage_day=cell.usage_day,
                        organization_id=cell.organization_id,
                        event_name=cell.event_name,
                        start_at=start,
                        since=now,
                        **row,
                    )
                )
            elif any(earlier._mapping[name] != value for name, value in row.items()):
                connection.execute(
                    update(held_usage)
                    .where(*_is(held_usage, cell), held_usage.c.start_at == start)
                    .values(row)
                )
            else:
                continue
            detail = f"{hold.reason}: value {hold.value}"
            changes.append(_change(cell, None, State.HELD if earlier else None, State.HELD, detail))
        self._remember(connection, now, changes)

    # Delivery --------------------------------------------------------------------------------

    def delivering(self) -> AbstractContextManager[Callable[[], None]]:
        """The right to deliver, held by one process at a time; see `locks`."""
        return delivery_lock(self.engine, self.delivery_wait_seconds)

    def recover(self, now: datetime) -> int:
        """Mark what a crash left in `sending` as `ambiguous`. Only while delivering."""
        with writing(self.engine) as connection:
            ids = connection.scalars(
                select(meter_events.c.id).where(meter_events.c.state == State.SENDING)
            ).all()
            outcomes = [Outcome(id, State.AMBIGUOUS, error_message="interrupted") for id in ids]
            self._change_state(connection, now, {State.SENDING}, outcomes)
        return len(ids)

    def deliverable(
        self, days: Sequence[date], states: Iterable[State] = (State.PLANNED, State.AMBIGUOUS)
    ) -> list[Outgoing]:
        """The events of these days in these states, by day and revision."""
        found: list[Outgoing] = []
        with self.engine.begin() as connection:
            rows = connection.execute(
                select(meter_events)
                .where(
                    meter_events.c.state.in_(list(states)),
                    meter_events.c.usage_day.in_(days),
                )
                .order_by(meter_events.c.usage_day, meter_events.c.revision, meter_events.c.id)
            )
            found += [
                Outgoing(
                    row.id,
                    _event(row),
                    State(row.state),
                    row.first_attempt_at,
                    row.last_attempt_at,
                )
                for row in rows
            ]
        return found

    def claim(self, ids: Sequence[int], now: datetime) -> set[int]:
        """Commit these events as `sending`, before any request leaves.

        Returns the ids of those that may leave: a planner may have superseded the others since
        they were read.
        """
        with writing(self.engine) as connection:
            return self._change_state(
                connection,
                now,
                {State.PLANNED, State.AMBIGUOUS},
                [Outcome(id, State.SENDING, attempts=1) for id in ids],
            )

    def record(self, outcomes: Sequence[Outcome], now: datetime, *, was: set[State]) -> None:
        """Commit what the attempts taught us about events in one of the states `was`."""
        with writing(self.engine) as connection:
            self._change_state(connection, now, was, outcomes)

    def _change_state(
        self,
        connection: Connection,
        now: datetime,
        was: set[State],
        outcomes: Sequence[Outcome],
    ) -> set[int]:
        """Change states and remember each change; rows no longer in `was` are left alone.

        Returns the ids of the rows that were changed.
        """
        changed_ids: set[int] = set()
        for start in range(0, len(outcomes), CHUNK):
            chunk = outcomes[start : start + CHUNK]
            by_id = {outcome.id: outcome for outcome in chunk}
            rows = connection.execute(
                select(meter_events)
                .where(meter_events.c.id.in_(by_id), meter_events.c.state.in_(was))
                .order_by(meter_events.c.id)  # all lock in one order, so none waits in a ring
                .with_for_update()
            ).all()
            if not rows:
                continue
            changed_ids |= {row.id for row in rows}
            uncounted = {row.usage_day for row in rows if by_id[row.id].error_code == NOT_COUNTED}
            reopen(connection, uncounted, self.run)  # what they said is to be said again
            connection.execute(
                update(meter_events)
                .where(meter_events.c.id == bindparam("_id"))
                .values(
                    state=bindparam("_state"),
                    attempts=bindparam("_attempts"),
                    first_attempt_at=bindparam("_first_attempt_at"),
                    last_attempt_at=bindparam("_last_attempt_at"),
                    accepted_at=bindparam("_accepted_at"),
                    rejected_at=bindparam("_rejected_at"),
                    request_id=bindparam("_request_id"),
                    error_code=bindparam("_error_code"),
                    error_message=bindparam("_error_message"),
                ),
                [_updated(row, by_id[row.id], now) for row in rows],
            )
            self._remember(
                connection,
                now,
                [
                    _change(
                        _cell(row),
                        row.revision,
                        row.state,
                        by_id[row.id].state,
                        by_id[row.id].error_message,
                        by_id[row.id].request_id,
                    )
                    for row in rows
                ],
            )
        return changed_ids

    def _remember(
        self, connection: Connection, now: datetime, changes: list[dict[str, Any]]
    ) -> None:
        if changes:
            connection.execute(
                insert(history),
                [{**change, "at": now, "run": self.run} for change in changes],
            )

    def meter_changed(self, connection: Connection, meter_id: str, at: datetime) -> bool:
        """Remember when Stripe last changed a meter; False if it is none of ours."""
        instant = int(at.timestamp())
        connection.execute(
            update(meters)
            .where(meters.c.meter_id == meter_id, func.coalesce(meters.c.changed_at, 0) < instant)
            .values(changed_at=instant)
        )
        ours = select(meters.c.event_name).where(meters.c.meter_id == meter_id)
        return connection.execute(ours).first() is not None

    # Error reports ---------------------------------------------------------------------------

    def take_report(self, connection: Connection, report: ErrorReport, now: datetime) -> None:
        """Take over what Stripe reports as not counted, in the caller's transaction.

        Events that its samples name, by identifier or Idempotency-Key, are rejected. What else
        the meter took in the reported window loses its `verified`, so that it is compared with
        Stripe once more. Raises StillSending when a named event is under way right now.
        """
        rows = connection.execute(select(meters)).all()
        known = {row.event_name: row for row in rows}
        ours = {row.event_name for row in rows if row.meter_id == report.meter_id}
        samples = [sample for error in report.errors for sample in error.samples]
        named = self._named(connection, known, samples)
        if any(row.state == State.SENDING for row in named.values()):
            raise StillSending(f"{report.event_id} names an event that is being sent")
        outcomes: dict[int, Outcome] = {}
        for error in report.errors:
            matched = {named[sample].id for sample in error.samples if sample in named}
            for id in matched:
                message = f"reported by {report.event_id}: {error.message}"
                outcomes[id] = Outcome(
                    id, State.REJECTED, error_code=error.code, error_message=message
                )
            self._keep_error(connection, report, error, len(matched))
        self._change_state(connection, now, {State.AMBIGUOUS, *SENT}, list(outcomes.values()))
        doubtful = connection.scalars(
            select(meter_events.c.id).where(
                meter_events.c.state == State.VERIFIED,
                meter_events.c.event_name.in_(ours),
                meter_events.c.accepted_at >= report.window_start - CLOCKS_APART,
                meter_events.c.accepted_at <= report.window_end + CLOCKS_APART,
            )
        ).all()
        again = f"to be verified again: {report.event_id} reports errors"
        self._change_state(
            connection,
            now,
            {State.VERIFIED},
            [Outcome(id, State.ACCEPTED, error_message=again) for id in doubtful],
        )

    def _keep_error(
        self, connection: Connection, report: ErrorReport, error: ReportedError, matched: int
    ) -> None:
        """Keep one line of a report; taken over again, it never forgets what it explained."""
        key = {"event_id": report.event_id, "code": error.code}
        before = connection.scalar(
            select(meter_errors.c.matched).where(
                *(meter_errors.c[name] == value for name, value in key.items())
            )
        )
        upsert(
            connection,
            meter_errors,
            key,
            {
                "meter_id": report.meter_id,
                "errors": error.count,
                "matched": max(matched, before or 0),
                "window_start": report.window_start,
                "window_end": report.window_end,
                "message": error.message,
            },
        )

    def _named(
        self, connection: Connection, known: Mapping[str, Row[Any]], samples: Sequence[str]
    ) -> dict[str, Row[Any]]:
        """The events that samples name, by their identifiers or by their Idempotency-Keys."""
        wanted = {*samples, *(sample.rpartition("-")[0] for sample in samples)}
        rows = connection.execute(
            select(meter_events)
            .where(meter_events.c.identifier.in_(wanted))
            .order_by(meter_events.c.id)  # all lock in one order, so none waits in a ring
            .with_for_update()
        ).all()
        found = {row.identifier: row for row in rows}
        for row in rows:
            if row.event_name in known:
                # Which count feeds the meter plays no part in the key.
                meter = _meter(known[row.event_name], Measure.READING_VOLUME)
                found[_event(row).idempotency_key(meter)] = row
        return {sample: found[sample] for sample in samples if sample in found}

    # Reads of Stripe's summaries -------------------------------------------------------------

    def lease_reads(self, day: date, number: int, limit: int) -> int:
        """Take up to so many reads on this day, never more than `limit` in its month; how many."""
        with writing(self.engine) as connection:
            if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": READS_KEY})
            used = _reads(connection, day.replace(day=1), day)
            taken = max(0, min(number, limit - used))
            if taken:
                today = _reads(connection, day, day)
                upsert(connection, stripe_reads, {"day": day}, {"used": today + taken})
        return taken

    def give_back_reads(self, day: date, number: int) -> None:
        """Give back reads that were leased on this day and not made."""
        with writing(self.engine) as connection:
            connection.execute(
                update(stripe_reads)
                .where(stripe_reads.c.day == day)
                .values(used=stripe_reads.c.used - number)
            )

    def reads_used(self, first: date, last: date) -> int:
        """Reads of these days, those on lease included."""
        with self.engine.begin() as connection:
            return _reads(connection, first, last)

    # Verification ----------------------------------------------------------------------------

    def expected(
        self,
        days: Sequence[date],
        replacing: Mapping[str, bool],
        *,
        unverified_only: bool,
    ) -> list[ExpectedFigure]:
        """What Stripe should say of each customer, meter and day with accepted events.

        `replacing` tells by event name whether newer values replace older ones. With
        `unverified_only`, only where something was accepted and not verified yet.
        """
        columns, rows = meter_events.c, list[Row[Any]]()
        query = (
            select(meter_events)
            .where(
                columns.state.in_(SENT),
                columns.usage_day.in_(days),
                columns.event_name.in_(replacing),
            )
            .order_by(columns.timestamp, columns.revision)
        )
        if unverified_only:
            accepted = meter_events.alias()
            place = ("usage_day", "customer", "event_name")
            query = query.where(
                tuple_(*(columns[name] for name in place)).in_(
                    select(*(accepted.c[name] for name in place)).where(
                        accepted.c.state == State.ACCEPTED, accepted.c.usage_day.in_(days)
                    )
                )
            )
        with self.engine.begin() as connection:
            rows += connection.execute(query)
        groups: dict[tuple[date, str, str], list[Row[Any]]] = defaultdict(list)
        for row in rows:
            groups[row.usage_day, row.customer, row.event_name].append(row)
        found = [
            _expected_figure(key, segment, span, replacing[key[2]])
            for key, events in sorted(groups.items())
            for span, segment in _by_segment(events, replaces=replacing[key[2]])
        ]
        return [s for s in found if s.pending_ids or not unverified_only]

    def doubt_zeros_after(self, checks: Sequence[Checked], now: datetime) -> set[date]:
        """Have zeros after these values looked at again: before, nothing could tell they are there.

        See `summaries.figure_of_a_zero`. Returns the days of those that follow directly.
        """
        columns = meter_events.c
        zeros: list[Row[*tuple[Any, ...]]] = []
        with writing(self.engine) as connection:
            for start in range(0, len(checks), CHUNK):
                values = [check.figure for check in checks[start : start + CHUNK]]
                later = connection.execute(
                    select(
                        columns.id,
                        columns.customer,
                        columns.event_name,
                        columns.value,
                        columns.timestamp,
                        columns.usage_day,
                    )
                    .where(
                        tuple_(columns.customer, columns.event_name).in_(
                            {(value.customer, value.event_name) for value in values}
                        ),
                        columns.timestamp > min(value.timestamp for value in values),
                        columns.state.in_(SENT),
                    )
                    .order_by(columns.timestamp)
                )
                by_place = defaultdict(list)
                for row in later:
                    by_place[row.customer, row.event_name].append(row)
                for value in values:
                    rows = by_place[value.customer, value.event_name]
                    after = bisect_right(rows, value.timestamp, key=lambda row: row.timestamp)
                    if after < len(rows) and not rows[after].value:
                        zeros.append(rows[after])
            message = "to be verified again: the value before it is new"
            again = {
                row.id: Outcome(row.id, State.ACCEPTED, error_message=message) for row in zeros
            }
            self._change_state(connection, now, {State.VERIFIED}, list(again.values()))
        return {row.usage_day for row in zeros}

    def newest_before(self, event_name: str, customer: str, timestamp: int) -> Before | None:
        """What Stripe took for a customer with stamps before `timestamp`; None: nothing."""
        columns = meter_events.c
        earlier = [
            columns.customer == customer,
            columns.event_name == event_name,
            columns.timestamp < timestamp,
        ]
        with self.engine.begin() as connection:
            shown = connection.execute(
                select(columns.value, columns.timestamp)
                .where(*earlier, columns.state == State.VERIFIED)
                .order_by(columns.timestamp.desc())
                .limit(1)
            ).one_or_none()
            if shown is not None:
                earlier.append(columns.timestamp > shown.timestamp)
            after = connection.execute(
                select(columns.value, columns.timestamp, columns.state, columns.accepted_at)
                .where(
                    *earlier,
                    columns.state.in_([State.ACCEPTED, State.SENDING, State.AMBIGUOUS]),
                )
                .order_by(columns.timestamp)
            ).all()
        taken = [] if shown is None else [shown.value]
        taken += [row.value for row in after if row.state == State.ACCEPTED]
        if not taken:
            return None
        return Before(
            taken[-1],
            0 if shown is None else shown.value,
            after[0].timestamp if shown is None else shown.timestamp,
            tuple(row.value for row in after),
            max((row.accepted_at for row in after if row.accepted_at is not None), default=None),
        )

    def _take_back(self, connection: Connection, check: Checked, now: datetime) -> bool:
        """Reject what Stripe does not show, if a report tells of errors that it did not name.

        Returns whether such a report casts doubt on this figure. Only a customer that Stripe
        does not know is believed at once; else the summary gets TAKE_BACK_AFTER to show it.
        """
        expected = check.figure
        unknown = meter_errors.c.code == CUSTOMER_UNKNOWN
        report = connection.execute(
            select(meter_errors)
            .join(meters, meters.c.meter_id == meter_errors.c.meter_id)
            .where(
                meters.c.event_name == expected.event_name,
                unknown if check.customer_gone else ~unknown,
                meter_errors.c.errors - meter_errors.c.matched >= len(check.missing),
                meter_errors.c.window_start <= min(expected.pending_since) + CLOCKS_APART,
                meter_errors.c.window_end >= max(expected.pending_since) - CLOCKS_APART,
            )
            .order_by(meter_errors.c.window_end.desc(), meter_errors.c.errors.desc())
            .limit(1)
        ).one_or_none()
        if report is None:
            return False
        if not check.customer_gone and now - expected.last_accepted_at < TAKE_BACK_AFTER:
            return True
        message = f"reported by {report.event_id}: not named, and not in Stripe's summary"
        outcomes = [
            Outcome(id, State.REJECTED, error_code=report.code, error_message=message)
            for id in check.missing
        ]
        taken = self._change_state(connection, now, {State.ACCEPTED}, outcomes)
        connection.execute(
            update(meter_errors)
            .where(meter_errors.c.event_id == report.event_id, meter_errors.c.code == report.code)
            .values(matched=meter_errors.c.matched + len(taken))
        )
        return True

    def record_checks(self, checks: Sequence[Checked], now: datetime) -> None:
        """Keep the looks at Stripe's summaries; where they agree, mark the events verified.

        What Stripe does not show, and has reported as an error without naming it, is rejected.
        """
        with writing(self.engine) as connection:
            # Of several looks at parts of one day the worst one is kept.
            rows = [
                {
                    "usage_day": check.figure.usage_day,
                    "customer": check.figure.customer,
                    "event_name": check.figure.event_name,
                    "expected": check.figure.expected,
                    "reported": check.reported,
                    "outcome": check.outcome,
                    "checked_at": now,
                    "run": self.run,
                }
                for check in sorted(
                    checks, key=lambda c: (*_place(c.figure), WORST.index(c.outcome))
                )
            ]
            key = ["usage_day", "customer", "event_name"]
            upsert_all(connection, verifications, key, rows)
            verified: list[int] = []
            for check in checks:
                doubted = bool(check.missing) and self._take_back(connection, check, now)
                if check.outcome == "agrees" and not doubted:
                    verified += check.figure.pending_ids
            self._change_state(
                connection, now, {State.ACCEPTED}, [Outcome(id, State.VERIFIED) for id in verified]
            )


def reopen(connection: Connection, days: Collection[date], run: str) -> None:
    """Have days planned again; what they were planned from stays known, to say what changed."""
    known = planned_days.c
    _forget_plans(connection, days, run)
    there = set(connection.scalars(select(known.usage_day).where(known.usage_day.in_(days))))
    for day in sorted(set(days) - there):
        upsert(connection, planned_days, {"usage_day": day}, {"snapshot_id": "", "run": run})


def _forget_plans(connection: Connection, days: Collection[date], run: str) -> None:
    """Those of these days that were planned once are to be planned again."""
    connection.execute(
        update(planned_days)
        .where(planned_days.c.usage_day.in_(days))
        .values(snapshot_id="", run=run)
    )


def _refuse_another(bound: Row[Any], account_id: str | None, livemode: bool) -> None:
    if bound.livemode != livemode:
        raise ConfigurationError(
            f"this ledger speaks for {MODES[bound.livemode]} mode, the key is a {MODES[livemode]} "
            "key. Use the other key, or a ledger of its own (BILLING_DATABASE_URL)."
        )
    if None not in (bound.account_id, account_id) and bound.account_id != account_id:
        raise ConfigurationError(
            f"this ledger speaks for the Stripe account {bound.account_id}, the key belongs to "
            f"{account_id}. Use the other key, or a ledger of its own (BILLING_DATABASE_URL)."
        )


def _meter(row: Row[Any], measure: Measure) -> Meter:
    return Meter(
        row.event_name,
        Formula(row.formula),
        measure,
        row.event_time_window,
        row.customer_key,
        row.value_key,
        row.meter_id,
        row.changed_at,
    )


def _cell(row: Row[Any]) -> Cell:
    return Cell(row.usage_day, row.organization_id, row.event_name)


def _event(row: Row[Any]) -> MeterEvent:
    return MeterEvent(
        _cell(row),
        row.revision,
        row.customer,
        row.value,
        row.target,
        row.timestamp,
        None if row.segment_start is None else (row.segment_start, row.segment_end),
    )


def _is(table: Any, cell: Cell) -> list[Any]:
    return [
        table.c.usage_day == cell.usage_day,
        table.c.organization_id == cell.organization_id,
        table.c.event_name == cell.event_name,
    ]


def _change(
    cell: Cell,
    revision: int | None,
    from_state: str | None,
    to_state: str,
    detail: str | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    return {
        "usage_day": cell.usage_day,
        "organization_id": cell.organization_id,
        "event_name": cell.event_name,
        "revision": revision,
        "from_state": from_state,
        "to_state": to_state,
        "request_id": request_id,
        "detail": detail,
    }


def _updated(row: Row[Any], outcome: Outcome, now: datetime) -> dict[str, Any]:
    """A row's new values: facts once learned (first attempt, acceptance, request) are kept."""
    tried = outcome.state is State.SENDING
    accepted = outcome.state is State.ACCEPTED
    return {
        "_id": row.id,
        "_state": outcome.state,
        "_attempts": row.attempts + outcome.attempts,
        "_first_attempt_at": row.first_attempt_at or (now if tried else None),
        "_last_attempt_at": now if tried or outcome.attempts else row.last_attempt_at,
        "_accepted_at": row.accepted_at or (now if accepted else None),
        "_rejected_at": now if outcome.state is State.REJECTED else row.rejected_at,
        "_request_id": outcome.request_id or row.request_id,
        "_error_code": outcome.error_code,
        "_error_message": outcome.error_message,
    }


def _reads(connection: Connection, first: date, last: date) -> int:
    query = select(func.sum(stripe_reads.c.used)).where(stripe_reads.c.day.between(first, last))
    return int(connection.scalar(query) or 0)


WORST: tuple[Agreement, ...] = ("agrees", "lagging", "mismatch")


def _place(expected: ExpectedFigure) -> tuple[date, str, str]:
    return expected.usage_day, expected.customer, expected.event_name


def _by_segment(
    events: list[Row[Any]], *, replaces: bool
) -> list[tuple[tuple[int, int] | None, list[Row[Any]]]]:
    """The events of one day by its parts, where it has any and newer values replace older ones."""
    named = [(e.segment_start, e.segment_end) for e in events if e.segment_start is not None]
    segments = segment_bounds(
        events[0].usage_day, [boundary for segment in named for boundary in segment]
    )
    if not replaces or len(segments) == 1:
        return [(None, events)]
    within = [
        (segment, [e for e in events if segment[0] <= e.timestamp < segment[1]])
        for segment in segments
    ]
    return [(segment, inside) for segment, inside in within if inside]


def _expected_figure(
    key: tuple[date, str, str],
    events: list[Row[Any]],
    span: tuple[int, int] | None,
    replaces: bool,
) -> ExpectedFigure:
    verified = [e.value for e in events if e.state == State.VERIFIED]
    pending = [e for e in events if e.state == State.ACCEPTED]
    if replaces:
        expected, certain = events[-1].value, (verified[-1] if verified else None)
    else:
        expected, certain = (
            sum(e.value for e in events),
            (sum(verified) if verified else None),
        )
    return ExpectedFigure(
        *key,
        expected,
        certain,
        tuple(e.value for e in pending),
        tuple(e.id for e in pending),
        tuple(e.accepted_at for e in pending),
        max(e.accepted_at for e in events),
        events[-1].timestamp,
        span,
    )
