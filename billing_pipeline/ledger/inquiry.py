"""Read-only questions to the ledger, for people and reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    case,
    func,
    or_,
    select,
    true,
)

from billing_pipeline.ledger.tables import (
    account,
    held_usage,
    history,
    meter_errors,
    meter_events,
    meters,
    planned_days,
    runs,
    undone_cells,
    verifications,
)
from billing_pipeline.rules.adjustments import DECIDED_BY_PEOPLE
from billing_pipeline.rules.agreement import CLOCKS_APART
from billing_pipeline.rules.model import (
    HOLD_EXPLANATIONS,
    SENT,
    UNRESOLVED,
    Cell,
    Formula,
    HoldReason,
    State,
)
from billing_pipeline.rules.planning import HARMLESS

CLOSED_AT_ONCE = 100
"""Closed times asked about in one query."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A customer's time [start, end) (unix seconds), which nothing reaches after `since`."""

    customer: str
    start: int
    end: int
    since: datetime

    def may_lack(self, event: Any) -> bool:
        """Whether an event of this customer may have come too late for it."""
        inside = self.start <= event.timestamp < self.end
        return inside and bool(event.last_attempt_at >= self.since - CLOCKS_APART)


@dataclass(frozen=True, slots=True)
class HeldUsage:
    """Usage that waits, with the reason."""

    cell: Cell
    value: int
    target: int
    reason: str
    since: datetime
    start: int = 0
    """Where the held part of a day with segments begins (unix seconds); 0: it is the whole day."""
    difference: int = 0
    """How much more the usage is than Stripe has of it and people have decided on."""

    def as_json(self) -> dict[str, Any]:
        """As `billing … --json` prints it."""
        return {
            "day": self.cell.usage_day.isoformat(),
            "organization_id": self.cell.organization_id,
            "meter": self.cell.event_name,
            "value": self.value,
            "reason": self.reason,
            "explanation": HOLD_EXPLANATIONS[HoldReason(self.reason)],
            "since": self.since.isoformat(),
            "segment_from": (
                datetime.fromtimestamp(self.start, UTC).isoformat() if self.start else None
            ),
        }


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A cell, or the part of it around `instant` (unix seconds; None: all of it), that is not as
    it should be: `target` is what it should be, `hold_reason` why any of it is held."""

    cell: Cell
    instant: int | None
    target: int
    hold_reason: frozenset[str] = frozenset()
    was_refused: bool = False


@dataclass(frozen=True)
class CellStory:
    """Everything the ledger knows about one cell, as plain rows for printing."""

    cell: Cell
    events: list[dict[str, Any]]
    held: list[HeldUsage]
    history: list[dict[str, Any]]
    verifications: list[dict[str, Any]]


class Inquiry:
    """Questions about spans of usage days. Every method is one read-only transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def counts(self, days: Sequence[date]) -> dict[str, int]:
        """Meter events by state, held usage included; every state is present."""
        counts = {str(state): 0 for state in State}
        with self._engine.begin() as connection:
            for state, number in connection.execute(
                select(meter_events.c.state, func.count())
                .where(meter_events.c.usage_day.in_(days))
                .group_by(meter_events.c.state)
            ):
                counts[state] += number
            counts[State.HELD] += (
                connection.scalar(
                    select(func.count())
                    .select_from(held_usage)
                    .where(held_usage.c.usage_day.in_(days), _shown())
                )
                or 0
            )
        return counts

    def held(self, days: Sequence[date], *, zeros: bool = False) -> list[HeldUsage]:
        """The usage of these days that waits; with `zeros`, also those that nobody misses yet."""
        found = []
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(held_usage)
                .where(held_usage.c.usage_day.in_(days), true() if zeros else _shown())
                .order_by(*held_usage.primary_key.columns)
            )
            found += [_held(row) for row in rows]
        return found

    def rejected(self, days: Sequence[date] | None = None) -> list[dict[str, Any]]:
        """The events of these days (None: all) that Stripe refused and nothing has made good."""
        query = _refused().order_by(meter_events.c.id)
        if days is not None:
            query = query.where(meter_events.c.usage_day.in_(days))
        with self._engine.begin() as connection:
            return [_event_json(row) for row in connection.execute(query)]

    def checks(self, days: Sequence[date] | None, outcome: str) -> list[dict[str, Any]]:
        """The last looks at Stripe's summaries of these days (None: all) with this outcome.

        Looks at what has been rejected since, so that nothing more is expected, are left out.
        """
        found = []
        still_expected = (
            select(meter_events.c.id)
            .where(
                meter_events.c.usage_day == verifications.c.usage_day,
                meter_events.c.customer == verifications.c.customer,
                meter_events.c.event_name == verifications.c.event_name,
                meter_events.c.state.in_(SENT),
            )
            .exists()
        )
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(verifications)
                .where(
                    true() if days is None else verifications.c.usage_day.in_(days),
                    verifications.c.outcome == outcome,
                    still_expected,
                )
                .order_by(*verifications.primary_key.columns)
            )
            found += [_json(dict(row._mapping)) for row in rows]
        return found

    def gated(self) -> dict[date, set[str]]:
        """The organizations whose usage waits at the gate, by day."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(held_usage.c.usage_day, held_usage.c.organization_id)
                .where(held_usage.c.reason == HoldReason.GATE_CLOSED)
                .distinct()
                .order_by(held_usage.c.usage_day)
            )
            found: dict[date, set[str]] = defaultdict(set)
            for row in rows:
                found[row.usage_day].add(row.organization_id)
        return dict(found)

    def per_organization(self, days: Sequence[date]) -> list[tuple[str, int, int]]:
        """Organization, events Stripe has, and how many of these are verified."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(
                    meter_events.c.organization_id,
                    func.count(),
                    func.count().filter(meter_events.c.state == State.VERIFIED),
                )
                .where(meter_events.c.usage_day.in_(days), meter_events.c.state.in_(SENT))
                .group_by(meter_events.c.organization_id)
                .order_by(meter_events.c.organization_id)
            )
            return [(name, events, verified) for name, events, verified in rows]

    def planned_from(self) -> dict[date, str]:
        """What each day was last planned from, as an id; empty where it is to be planned again."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(planned_days.c.usage_day, planned_days.c.snapshot_id))
            return {row.usage_day: row.snapshot_id for row in rows}

    def inputs(self, days: Sequence[date]) -> dict[date, str]:
        """What these days were last planned from, as `write_plan` was given it."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(planned_days.c.usage_day, planned_days.c.inputs).where(
                    planned_days.c.usage_day.in_(days), planned_days.c.inputs.is_not(None)
                )
            )
            return {row.usage_day: row.inputs for row in rows}

    def run(self, run: str) -> dict[str, Any] | None:
        """Who ran it, why, and when; None for a run that reported nothing and gave no reason."""
        with self._engine.begin() as connection:
            row = connection.execute(select(runs).where(runs.c.run == run)).one_or_none()
        return _json(dict(row._mapping)) if row else None

    def planned_by(self, run: str) -> list[tuple[Cell, int, int]]:
        """(cell, revision, timestamp) of every event that a run planned."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(meter_events)
                .where(meter_events.c.planned_by == run)
                .order_by(meter_events.c.id)
            )
            return [
                (
                    Cell(row.usage_day, row.organization_id, row.event_name),
                    row.revision,
                    row.timestamp,
                )
                for row in rows
            ]

    def last_value(
        self, organization_id: str, event_name: str, before: int, *, without: str
    ) -> int | None:
        """The newest value that Stripe has, stamped before an instant (unix seconds).

        As it was without what one run has said.
        """
        with self._engine.begin() as connection:
            return connection.scalar(
                select(meter_events.c.value)
                .where(
                    meter_events.c.organization_id == organization_id,
                    meter_events.c.event_name == event_name,
                    meter_events.c.timestamp < before,
                    meter_events.c.state.in_(SENT),
                    meter_events.c.planned_by != without,
                )
                .order_by(meter_events.c.timestamp.desc())
                .limit(1)
            )

    def open_days(self, verifiable_since: date) -> set[date]:
        """Days with events whose outcome is open, however old, and days since then with events
        that were accepted and not verified."""
        with self._engine.begin() as connection:
            return set(
                connection.scalars(
                    select(meter_events.c.usage_day)
                    .where(
                        or_(
                            meter_events.c.state.in_(list(UNRESOLVED)),
                            and_(
                                meter_events.c.state == State.ACCEPTED,
                                meter_events.c.usage_day >= verifiable_since,
                            ),
                        )
                    )
                    .distinct()
                )
            )

    def left_out(self) -> list[LeftOut]:
        """Usage that is held or was refused, and could be reported once its cause is gone."""
        newest = meter_events.alias()
        targets = (
            select(newest.c.target)
            .where(
                newest.c.usage_day == meter_events.c.usage_day,
                newest.c.organization_id == meter_events.c.organization_id,
                newest.c.event_name == meter_events.c.event_name,
                _speaks_of(newest, meter_events.c.timestamp),
            )
            .order_by(newest.c.revision.desc())
            .limit(1)
            .scalar_subquery()
        )
        with self._engine.begin() as connection:
            held = connection.execute(select(held_usage)).all()
            refused = connection.execute(_refused().add_columns(targets.label("newest"))).all()
        why: dict[Cell, set[str]] = defaultdict(set)
        for row in held:
            why[_held(row).cell].add(row.reason)
        found = [
            LeftOut(cell, row.start_at or None, row.target, frozenset(why[cell]))
            for row in held
            if row.reason in LIFTABLE
            for cell in (_held(row).cell,)
        ]
        found += [
            LeftOut(cell, row.timestamp, row.newest, frozenset(why[cell]), was_refused=True)
            for row in refused
            for cell in (Cell(row.usage_day, row.organization_id, row.event_name),)
        ]
        return found

    def reported_for(self, start: int, end: int) -> set[tuple[str, str]]:
        """(organization, customer) of what Stripe took, stamped in [start, end) (unix seconds)."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(meter_events.c.organization_id, meter_events.c.customer)
                .where(
                    meter_events.c.timestamp >= start,
                    meter_events.c.timestamp < end,
                    meter_events.c.state.in_(SENT),
                )
                .distinct()
            )
            return {(row.organization_id, row.customer) for row in rows}

    def undone(self, day: date) -> dict[Cell, str]:
        """The cells of a day of which a run was undone, with the reason."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(undone_cells).where(undone_cells.c.usage_day == day))
            return {
                Cell(row.usage_day, row.organization_id, row.event_name): row.reason for row in rows
            }

    def verified_cells(
        self, days: Sequence[date], organizations: Collection[str] | None
    ) -> tuple[int, int]:
        """The cells of these days that were reported or are held; and how many Stripe confirms.

        Confirmed is a cell of which everything that stands is verified, nothing waits, and nothing
        is refused that was not made good.
        """
        refused = _refused().with_only_columns(meter_events.c.id)
        columns = meter_events.c
        cell = (columns.usage_day, columns.organization_id, columns.event_name)
        waiting = select(held_usage.c.value).where(
            held_usage.c.usage_day == columns.usage_day,
            held_usage.c.organization_id == columns.organization_id,
            held_usage.c.event_name == columns.event_name,
            _shown(),
        )
        recorded = (
            select(
                *cell,
                func.count().filter(columns.state == State.VERIFIED).label("verified"),
                func.count()
                .filter(
                    or_(
                        columns.state.not_in([State.VERIFIED, State.REJECTED]),
                        columns.id.in_(refused),
                    )
                )
                .label("open"),
                func.max(case((waiting.exists(), 1), else_=0)).label("held"),
            )
            .where(
                columns.usage_day.in_(days),
                or_(columns.state != State.REJECTED, columns.error_code.not_in(list(HARMLESS))),
                _among(columns.organization_id, organizations),
            )
            .group_by(*cell)
            .subquery()
        )
        only_held = (
            select(held_usage.c.usage_day, held_usage.c.organization_id, held_usage.c.event_name)
            .where(
                held_usage.c.usage_day.in_(days),
                _shown(),
                _among(held_usage.c.organization_id, organizations),
                ~select(recorded.c.usage_day)
                .where(
                    recorded.c.usage_day == held_usage.c.usage_day,
                    recorded.c.organization_id == held_usage.c.organization_id,
                    recorded.c.event_name == held_usage.c.event_name,
                )
                .exists(),
            )
            .distinct()
            .subquery()
        )
        with self._engine.begin() as connection:
            reported = connection.scalar(select(func.count()).select_from(recorded)) or 0
            confirmed = connection.scalar(
                select(func.count())
                .select_from(recorded)
                .where(recorded.c.verified > 0, recorded.c.open == 0, recorded.c.held == 0)
            )
            held = connection.scalar(select(func.count()).select_from(only_held)) or 0
        return reported + held, confirmed or 0

    def verified_since(self, days: Sequence[date]) -> dict[date, datetime]:
        """When the last cell of each of these days was verified for the first time."""
        columns = history.c
        firsts = (
            select(columns.usage_day, func.min(columns.at).label("at"))
            .where(columns.usage_day.in_(days), columns.to_state == State.VERIFIED)
            .group_by(columns.usage_day, columns.organization_id, columns.event_name)
            .subquery()
        )
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(firsts.c.usage_day, func.max(firsts.c.at).label("at")).group_by(
                    firsts.c.usage_day
                )
            )
            return {row.usage_day: row.at for row in rows}

    def accepted_after(self, closed: Sequence[Closed]) -> list[tuple[Closed, dict[str, Any]]]:
        """What Stripe took for these customers and times after they were closed.

        `certain` is False where it may have been taken in time: it was tried before and after, or
        so close to it that the two clocks may differ by more.
        """
        columns, found = meter_events.c, []
        with self._engine.begin() as connection:
            for start in range(0, len(closed), CLOSED_AT_ONCE):
                some: dict[str, list[Closed]] = defaultdict(list)
                for each in closed[start : start + CLOSED_AT_ONCE]:
                    some[each.customer].append(each)
                rows = connection.execute(
                    select(meter_events).where(
                        columns.state.in_(SENT),
                        or_(
                            *(
                                and_(
                                    columns.customer == each.customer,
                                    columns.timestamp >= each.start,
                                    columns.timestamp < each.end,
                                    columns.last_attempt_at >= each.since - CLOCKS_APART,
                                )
                                for same in some.values()
                                for each in same
                            )
                        ),
                    )
                )
                for row in rows:
                    for each in some[row.customer]:
                        if each.may_lack(row):
                            certain = row.first_attempt_at >= each.since + CLOCKS_APART
                            found.append((each, {**_event_json(row), "certain": certain}))
        return sorted(found, key=lambda both: (both[0].since, both[1]["id"]))

    def story(self, cell: Cell) -> CellStory:
        """All there is about one cell."""

        def of(table: Any) -> list[Any]:
            return [
                table.c.usage_day == cell.usage_day,
                table.c.organization_id == cell.organization_id,
                table.c.event_name == cell.event_name,
            ]

        with self._engine.begin() as connection:
            events = connection.execute(
                select(meter_events, runs.c.who, runs.c.reason)
                .join(runs, runs.c.run == meter_events.c.planned_by, isouter=True)
                .where(*of(meter_events))
                .order_by(meter_events.c.revision)
            ).all()
            held = connection.execute(
                select(held_usage).where(*of(held_usage), _shown()).order_by(held_usage.c.start_at)
            ).all()
            changes = connection.execute(
                select(history).where(*of(history)).order_by(history.c.id)
            ).all()
            looks = connection.execute(
                select(verifications).where(
                    verifications.c.usage_day == cell.usage_day,
                    verifications.c.event_name == cell.event_name,
                    verifications.c.customer.in_({event.customer for event in events}),
                )
            ).all()
        return CellStory(
            cell,
            [_event_json(row) for row in events],
            [_held(row) for row in held],
            [_json(dict(row._mapping)) for row in changes],
            [_json(dict(row._mapping)) for row in looks],
        )

    def open_reports(self, now: datetime) -> list[dict[str, Any]]:
        """Stripe's error reports, by code, that still ask for somebody's attention.

        Those whose named events have not been replaced, and those of the last day that tell of
        more errors than they name: what else they mean shows when the meter is verified again.
        """
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(meter_errors).order_by(meter_errors.c.window_end.desc())
            ).all()
            refused = [row.error_message or "" for row in connection.execute(_refused())]
        return [
            _json(dict(row._mapping))
            for row in rows
            if any(message.startswith(f"reported by {row.event_id}:") for message in refused)
            or (row.errors > row.matched and row.window_end > now - timedelta(days=1))
        ]

    def held_for_good(self) -> int:
        """How much usage is held that by itself will never be reported: parts of days, counted."""
        with self._engine.begin() as connection:
            query = select(func.count()).select_from(held_usage)
            return connection.scalar(query.where(*_for_good())) or 0

    def held_segment(self, connection: Connection, cell: Cell, start: int) -> HeldUsage | None:
        """What is held of a part of a cell, in the caller's transaction."""
        row = connection.execute(
            select(held_usage).where(
                held_usage.c.usage_day == cell.usage_day,
                held_usage.c.organization_id == cell.organization_id,
                held_usage.c.event_name == cell.event_name,
                held_usage.c.start_at == start,
            )
        ).one_or_none()
        return None if row is None else _held(row)

    def open_adjustments(self) -> list[HeldUsage]:
        """The usage that waits for a person to decide what becomes of its amount."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                select(held_usage).where(*_for_good()).order_by(*held_usage.primary_key.columns)
            )
            return [_held(row) for row in rows]

    def account(self) -> dict[str, Any] | None:
        """The account and mode this ledger speaks for, None before its first contact."""
        with self._engine.begin() as connection:
            row = connection.execute(select(account)).one_or_none()
        return _json(dict(row._mapping)) if row else None


LIFTABLE = (
    HoldReason.NO_CUSTOMER,
    HoldReason.CUSTOMER_UNDECIDED,
    HoldReason.CUSTOMER_SHARED,
    HoldReason.CUSTOMER_DELETED,
    HoldReason.SUBSCRIPTION_INACTIVE,
    HoldReason.SUBSCRIPTION_ENDED,
    HoldReason.SUBSCRIPTION_UNKNOWN,
    HoldReason.PERIOD_CLOSED,
)
"""Holds that something said later may lift."""


def _among(column: Any, names: Collection[str] | None) -> ColumnElement[bool]:
    return true() if names is None else column.in_(list(names))


def _shown() -> ColumnElement[bool]:
    """See `Hold.is_silent`."""
    return or_(
        held_usage.c.value != 0,
        held_usage.c.difference != 0,
        held_usage.c.reason == HoldReason.GATE_CLOSED,
    )


def _for_good() -> list[ColumnElement[bool]]:
    return [held_usage.c.reason.in_(list(DECIDED_BY_PEOPLE)), held_usage.c.difference != 0]


def _refused() -> Select[Any]:
    """Events that Stripe refused and nothing later has made good.

    Where newer values replace older ones any later report does; where Stripe adds them up,
    only one that was planned when the refusal was known. On a day with segments a report about one
    part makes nothing good in another.
    """
    later = meter_events.alias()
    replacing = select(meters.c.event_name).where(
        or_(meters.c.formula == Formula.LAST, meters.c.event_time_window == "day")
    )
    return select(meter_events).where(
        meter_events.c.state == State.REJECTED,
        meter_events.c.error_code.not_in(list(HARMLESS)),
        ~select(later.c.id)
        .where(
            later.c.usage_day == meter_events.c.usage_day,
            later.c.organization_id == meter_events.c.organization_id,
            later.c.event_name == meter_events.c.event_name,
            later.c.revision > meter_events.c.revision,
            or_(later.c.state != State.REJECTED, later.c.error_code.not_in(list(HARMLESS))),
            _speaks_of(later, meter_events.c.timestamp),
            or_(
                later.c.event_name.in_(replacing),
                later.c.planned_at >= meter_events.c.rejected_at,
            ),
        )
        .exists(),
    )


def _speaks_of(events: Any, timestamp: Any) -> ColumnElement[bool]:
    """Whether an event is about the part of its day in which this instant lies."""
    inside = and_(events.c.segment_start <= timestamp, timestamp < events.c.segment_end)
    return or_(events.c.segment_start.is_(None), inside)


def _held(row: Any) -> HeldUsage:
    cell = Cell(row.usage_day, row.organization_id, row.event_name)
    return HeldUsage(
        cell, row.value, row.target, row.reason, row.since, row.start_at, row.difference
    )


def _event_json(row: Any) -> dict[str, Any]:
    event = _json(dict(row._mapping))
    event["day"] = event.pop("usage_day")
    event["meter"] = event.pop("event_name")
    return event


def _json(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, (date, datetime)) else value
        for name, value in row.items()
    }
