"""Questions to the ledger, for people and reports. None of them writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, or_, select, true

from billing_pipeline.ledger.rows import cell_of, is_cell, row_as_json, same_cell
from billing_pipeline.ledger.tables import (
    history,
    holds,
    meter_errors,
    meter_events,
    meters,
    runs,
    verifications,
)
from billing_pipeline.rules.holds import ALWAYS_SHOWN, HOLD_RULES, NEEDS_ADJUSTMENT, HoldReason
from billing_pipeline.rules.model import (
    NOT_REFUSALS,
    REPLACING_FORMULAS,
    REPLACING_WINDOWS,
    SENT,
    Cell,
    State,
)
from billing_pipeline.stripe_facts import CLOCKS_APART

CLOSED_AT_ONCE = 100
"""Closed times asked about in one query."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A customer's time [start, end) (unix seconds), closed since an instant."""

    customer: str
    start: int
    end: int
    since: datetime

    def may_lack(self, event: Any) -> bool:
        """Whether an event of this customer may have been accepted too late."""
        inside = self.start <= event.timestamp < self.end
        return inside and bool(event.last_attempt_at >= self.since - CLOCKS_APART)


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """Usage on hold, as the ledger has it."""

    cell: Cell
    value: int
    target: int
    reason: str
    since: datetime
    start: int = 0
    """Where the segment on hold begins (unix seconds); 0: the whole day."""
    difference: int = 0
    """How much more the usage is than what Stripe recorded and people decided about."""

    def as_json(self) -> dict[str, Any]:
        """As `billing … --json` prints it."""
        return {
            "day": self.cell.usage_day.isoformat(),
            "organization_id": self.cell.organization_id,
            "meter": self.cell.event_name,
            "value": self.value,
            "reason": self.reason,
            "explanation": HOLD_RULES[HoldReason(self.reason)].text,
            "since": self.since.isoformat(),
            "segment_from": (
                datetime.fromtimestamp(self.start, UTC).isoformat() if self.start else None
            ),
        }


@dataclass(frozen=True)
class CellStory:
    """Everything the ledger knows about one cell, as plain rows for printing."""

    cell: Cell
    events: list[dict[str, Any]]
    held: list[HoldRecord]
    history: list[dict[str, Any]]
    verifications: list[dict[str, Any]]


def counts(connection: Connection, days: Sequence[date]) -> dict[str, int]:
    """Meter events by state, and `held`: usage on hold that is shown. Every state is present."""
    found = {str(state): 0 for state in State}
    for state, number in connection.execute(
        select(meter_events.c.state, func.count())
        .where(meter_events.c.usage_day.in_(days))
        .group_by(meter_events.c.state)
    ):
        found[state] += number
    on_hold = select(func.count()).select_from(holds).where(holds.c.usage_day.in_(days), _shown())
    found[State.HELD] = connection.scalar(on_hold) or 0
    return found


def holds_of(
    connection: Connection, days: Sequence[date], *, zeros: bool = False
) -> list[HoldRecord]:
    """The usage on hold of these days; with `zeros`, also holds that are not shown."""
    rows = connection.execute(
        select(holds)
        .where(holds.c.usage_day.in_(days), true() if zeros else _shown())
        .order_by(*holds.primary_key.columns)
    )
    return [_hold(row) for row in rows]


def rejected(connection: Connection, days: Sequence[date] | None = None) -> list[dict[str, Any]]:
    """The events of these days (None: all) that Stripe refused, and that nothing later replaced."""
    query = refused_events().order_by(meter_events.c.id)
    if days is not None:
        query = query.where(meter_events.c.usage_day.in_(days))
    return [_event_json(row) for row in connection.execute(query)]


def checks(
    connection: Connection, days: Sequence[date] | None, outcome: str
) -> list[dict[str, Any]]:
    """The newest checks against Stripe's summaries of these days (None: all) with this outcome.

    A check whose events have all been rejected since does not count: nothing is expected any more.
    """
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
    rows = connection.execute(
        select(verifications)
        .where(
            true() if days is None else verifications.c.usage_day.in_(days),
            verifications.c.outcome == outcome,
            still_expected,
        )
        .order_by(*verifications.primary_key.columns)
    )
    return [row_as_json(dict(row._mapping)) for row in rows]


def days_at_gate(connection: Connection) -> dict[date, set[str]]:
    """The organizations whose usage waits at the gate, by day."""
    rows = connection.execute(
        select(holds.c.usage_day, holds.c.organization_id)
        .where(holds.c.reason == HoldReason.GATE_CLOSED)
        .distinct()
        .order_by(holds.c.usage_day)
    )
    found: dict[date, set[str]] = defaultdict(set)
    for row in rows:
        found[row.usage_day].add(row.organization_id)
    return dict(found)


def per_organization(connection: Connection, days: Sequence[date]) -> list[tuple[str, int, int]]:
    """(organization, events that Stripe has, how many of these are verified)."""
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


def planned_by(connection: Connection, run: str) -> list[tuple[Cell, int, int]]:
    """(cell, revision, timestamp) of every event that a run planned."""
    rows = connection.execute(
        select(meter_events).where(meter_events.c.planned_by == run).order_by(meter_events.c.id)
    )
    return [(cell_of(row), row.revision, row.timestamp) for row in rows]


def last_value(
    connection: Connection, organization_id: str, event_name: str, before: int, *, without: str
) -> int | None:
    """The newest value that Stripe has with a timestamp before an instant (unix seconds).

    Events that one run planned do not count.
    """
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


def reported_between(connection: Connection, start: int, end: int) -> set[tuple[str, str]]:
    """(organization, customer) of events that Stripe has with timestamps in [start, end)."""
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


def verified_cells(
    connection: Connection, days: Sequence[date], organizations: Collection[str] | None
) -> tuple[int, int]:
    """The cells of these days that were reported or are on hold, and how many are verified.

    A cell is verified if all its accepted events are, nothing of it is on hold or unresolved, and
    no refusal is open.
    """
    refused = refused_events().with_only_columns(meter_events.c.id)
    columns = meter_events.c
    cell = (columns.usage_day, columns.organization_id, columns.event_name)
    waiting = select(holds.c.value).where(*same_cell(holds, meter_events), _shown())
    recorded = (
        select(
            *cell,
            func.count().filter(columns.state == State.VERIFIED).label("verified"),
            func.count()
            .filter(
                or_(columns.state.not_in([State.VERIFIED, State.REJECTED]), columns.id.in_(refused))
            )
            .label("open"),
            func.max(case((waiting.exists(), 1), else_=0)).label("held"),
        )
        .where(
            columns.usage_day.in_(days),
            or_(columns.state != State.REJECTED, columns.error_code.not_in(list(NOT_REFUSALS))),
            _among(columns.organization_id, organizations),
        )
        .group_by(*cell)
        .subquery()
    )
    only_held = (
        select(holds.c.usage_day, holds.c.organization_id, holds.c.event_name)
        .where(
            holds.c.usage_day.in_(days),
            _shown(),
            _among(holds.c.organization_id, organizations),
            ~select(recorded.c.usage_day).where(*same_cell(recorded, holds)).exists(),
        )
        .distinct()
        .subquery()
    )
    reported = connection.scalar(select(func.count()).select_from(recorded)) or 0
    confirmed = connection.scalar(
        select(func.count())
        .select_from(recorded)
        .where(recorded.c.verified > 0, recorded.c.open == 0, recorded.c.held == 0)
    )
    held = connection.scalar(select(func.count()).select_from(only_held)) or 0
    return reported + held, confirmed or 0


def verified_since(connection: Connection, days: Sequence[date]) -> dict[date, datetime]:
    """When the last cell of each of these days was verified for the first time."""
    columns = history.c
    firsts = (
        select(columns.usage_day, func.min(columns.at).label("at"))
        .where(columns.usage_day.in_(days), columns.to_state == State.VERIFIED)
        .group_by(columns.usage_day, columns.organization_id, columns.event_name)
        .subquery()
    )
    rows = connection.execute(
        select(firsts.c.usage_day, func.max(firsts.c.at).label("at")).group_by(firsts.c.usage_day)
    )
    return {row.usage_day: row.at for row in rows}


def accepted_after(
    connection: Connection, closed: Sequence[Closed]
) -> list[tuple[Closed, dict[str, Any]]]:
    """The events that Stripe accepted for these customers and times after they were closed.

    `certain` is False if an event may have been accepted in time: it was tried before and after,
    or within the difference that the two clocks may have.
    """
    columns, found = meter_events.c, []
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


def story(connection: Connection, cell: Cell) -> CellStory:
    """Everything about one cell."""
    events = connection.execute(
        select(meter_events, runs.c.who, runs.c.reason)
        .join(runs, runs.c.run == meter_events.c.planned_by, isouter=True)
        .where(*is_cell(meter_events, cell))
        .order_by(meter_events.c.revision)
    ).all()
    on_hold = connection.execute(
        select(holds).where(*is_cell(holds, cell), _shown()).order_by(holds.c.start_at)
    ).all()
    changes = connection.execute(
        select(history).where(*is_cell(history, cell)).order_by(history.c.id)
    ).all()
    last_checks = connection.execute(
        select(verifications).where(
            verifications.c.usage_day == cell.usage_day,
            verifications.c.event_name == cell.event_name,
            verifications.c.customer.in_({event.customer for event in events}),
        )
    ).all()
    return CellStory(
        cell,
        [_event_json(row) for row in events],
        [_hold(row) for row in on_hold],
        [row_as_json(dict(row._mapping)) for row in changes],
        [row_as_json(dict(row._mapping)) for row in last_checks],
    )


def open_reports(connection: Connection, now: datetime) -> list[dict[str, Any]]:
    """Stripe's error reports, by code, that still need attention.

    These are reports whose named events have not been replaced, and reports of the last day with
    more errors than named events: the next verification finds the others.
    """
    rows = connection.execute(select(meter_errors).order_by(meter_errors.c.window_end.desc())).all()
    refused = [row.error_message or "" for row in connection.execute(refused_events())]
    return [
        row_as_json(dict(row._mapping))
        for row in rows
        if any(message.startswith(f"reported by {row.event_id}:") for message in refused)
        or (row.errors > row.matched and row.window_end > now - timedelta(days=1))
    ]


def amounts_to_decide(connection: Connection) -> int:
    """How many amounts wait for a person to decide about them."""
    query = select(func.count()).select_from(holds)
    return connection.scalar(query.where(*_to_decide())) or 0


def hold_of_segment(connection: Connection, cell: Cell, start: int) -> HoldRecord | None:
    """The hold on the segment of a cell that begins at `start`; None if there is none."""
    row = connection.execute(
        select(holds).where(*is_cell(holds, cell), holds.c.start_at == start)
    ).one_or_none()
    return None if row is None else _hold(row)


def holds_to_decide(connection: Connection) -> list[HoldRecord]:
    """The usage on hold that waits for a person to decide what becomes of its amount."""
    rows = connection.execute(
        select(holds).where(*_to_decide()).order_by(*holds.primary_key.columns)
    )
    return [_hold(row) for row in rows]


def _among(column: Any, names: Collection[str] | None) -> ColumnElement[bool]:
    return true() if names is None else column.in_(list(names))


def _shown() -> ColumnElement[bool]:
    """Holds that are shown: the opposite of `Hold.is_silent`."""
    return or_(holds.c.value != 0, holds.c.difference != 0, holds.c.reason.in_(list(ALWAYS_SHOWN)))


def _to_decide() -> list[ColumnElement[bool]]:
    return [holds.c.reason.in_(list(NEEDS_ADJUSTMENT)), holds.c.difference != 0]


def refused_events() -> Select[Any]:
    """Events that Stripe refused, and that no later report replaced.

    On a meter that keeps one value, any later report replaces a refusal. On a meter that adds up,
    only a report that was planned when the refusal was known does. A report about one segment
    replaces nothing in another.
    """
    later = meter_events.alias()
    replacing = select(meters.c.event_name).where(
        or_(
            meters.c.formula.in_(list(REPLACING_FORMULAS)),
            meters.c.event_time_window.in_(list(REPLACING_WINDOWS)),
        )
    )
    return select(meter_events).where(
        meter_events.c.state == State.REJECTED,
        meter_events.c.error_code.not_in(list(NOT_REFUSALS)),
        ~select(later.c.id)
        .where(
            *same_cell(later, meter_events),
            later.c.revision > meter_events.c.revision,
            or_(later.c.state != State.REJECTED, later.c.error_code.not_in(list(NOT_REFUSALS))),
            _is_about(later, meter_events.c.timestamp),
            or_(
                later.c.event_name.in_(replacing), later.c.planned_at >= meter_events.c.rejected_at
            ),
        )
        .exists(),
    )


def _is_about(events: Any, timestamp: Any) -> ColumnElement[bool]:
    """Whether an event is about the segment that contains an instant."""
    inside = and_(events.c.segment_start <= timestamp, timestamp < events.c.segment_end)
    return or_(events.c.segment_start.is_(None), inside)


def _hold(row: Any) -> HoldRecord:
    return HoldRecord(
        cell_of(row), row.value, row.target, row.reason, row.since, row.start_at, row.difference
    )


def _event_json(row: Any) -> dict[str, Any]:
    event = row_as_json(dict(row._mapping))
    event["day"] = event.pop("usage_day")
    event["meter"] = event.pop("event_name")
    return event
