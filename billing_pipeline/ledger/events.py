"""Meter events: their content, and every change of their state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, or_, select, update

from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.marks import look_again
from billing_pipeline.ledger.rows import CHUNK, cell_columns, cell_of, event_of
from billing_pipeline.ledger.tables import history, meter_events
from billing_pipeline.rules.model import SUPERSEDED, Cell, MeterEvent, RecordedEvent, State


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event that may be sent now, with its row id and its earlier attempts."""

    id: int
    event: MeterEvent
    state: State
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an event, to be recorded."""

    id: int
    state: State
    attempts: int = 0
    request_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None


def recorded_events(
    connection: Connection, days: Sequence[date], *, only: Collection[str] | None = None
) -> dict[date, dict[Cell, list[RecordedEvent]]]:
    """The events about the cells of these days, in the order of revisions.

    `only`: those of some organizations, and of others with the same customers.
    """
    found: dict[date, dict[Cell, list[RecordedEvent]]] = {day: defaultdict(list) for day in days}
    columns = meter_events.c
    query = select(meter_events).where(columns.usage_day.in_(days)).order_by(columns.revision)
    if only is not None and len(only) <= CHUNK:
        theirs = select(columns.customer).where(
            columns.usage_day.in_(days), columns.organization_id.in_(only)
        )
        query = query.where(or_(columns.organization_id.in_(only), columns.customer.in_(theirs)))
    rows = connection.execute(query)
    for row in rows:
        found[row.usage_day][cell_of(row)].append(
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


def deliverable(
    connection: Connection,
    days: Sequence[date],
    states: Iterable[State] = (State.PLANNED, State.AMBIGUOUS),
) -> list[Outgoing]:
    """The events of these days in these states, by day and revision."""
    rows = connection.execute(
        select(meter_events)
        .where(meter_events.c.state.in_(list(states)), meter_events.c.usage_day.in_(days))
        .order_by(meter_events.c.usage_day, meter_events.c.revision, meter_events.c.id)
    )
    return [
        Outgoing(row.id, event_of(row), State(row.state), row.first_attempt_at, row.last_attempt_at)
        for row in rows
    ]


def mark_interrupted(writer: Writer, now: datetime) -> int:
    """Mark events that a crash left in `sending` as `ambiguous`. Only while delivering."""
    ids = writer.connection.scalars(
        select(meter_events.c.id).where(meter_events.c.state == State.SENDING)
    ).all()
    outcomes = [Outcome(id, State.AMBIGUOUS, error_message="interrupted") for id in ids]
    change_state(writer, outcomes, now, was={State.SENDING})
    return len(ids)


def claim(writer: Writer, ids: Sequence[int], now: datetime) -> set[int]:
    """Commit these events as `sending`, before any request leaves.

    Returns the ids of those that may leave: a planner may have superseded the others since they
    were read.
    """
    outcomes = [Outcome(id, State.SENDING, attempts=1) for id in ids]
    return change_state(writer, outcomes, now, was={State.PLANNED, State.AMBIGUOUS})


def change_state(
    writer: Writer, outcomes: Sequence[Outcome], now: datetime, *, was: Collection[State]
) -> set[int]:
    """Change states and remember each change. Events that are no longer in `was` stay as they are.

    Returns the ids of the rows that were changed.
    """
    changed_ids: set[int] = set()
    for start in range(0, len(outcomes), CHUNK):
        chunk = outcomes[start : start + CHUNK]
        by_id = {outcome.id: outcome for outcome in chunk}
        rows = writer.connection.execute(
            select(meter_events)
            .where(meter_events.c.id.in_(by_id), meter_events.c.state.in_(was))
            .order_by(meter_events.c.id)  # all lock in one order, so none waits in a ring
            .with_for_update()
        ).all()
        if not rows:
            continue
        changed_ids |= {row.id for row in rows}
        # What was rejected may have to be reported again, however old its day is.
        rejected = {row.usage_day for row in rows if by_id[row.id].state is State.REJECTED}
        look_again(writer, rejected)
        writer.connection.execute(
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
        remember(
            writer,
            [
                change(
                    cell_of(row),
                    row.revision,
                    row.state,
                    by_id[row.id].state,
                    by_id[row.id].error_message,
                    by_id[row.id].request_id,
                )
                for row in rows
            ],
            now,
        )
    return changed_ids


def supersede(
    writer: Writer, day: date, wanted: Collection[tuple[Cell, int]], now: datetime
) -> set[Cell]:
    """Withdraw planned events (cell, revision); returns the cells for which that came too late.

    A deliverer may have claimed an event since it was read. It is then under way; its cell waits.
    """
    if not wanted:
        return set()
    rows = writer.connection.execute(
        select(meter_events)
        .where(meter_events.c.usage_day == day, meter_events.c.state == State.PLANNED)
        .order_by(meter_events.c.id)
        .with_for_update()
    )
    ids = {(cell_of(row), row.revision): row.id for row in rows}
    message = "never sent: replaced by a newer plan"
    outcomes = [
        Outcome(ids[key], State.REJECTED, error_code=SUPERSEDED, error_message=message)
        for key in wanted
        if key in ids
    ]
    change_state(writer, outcomes, now, was={State.PLANNED})
    return {cell for cell, revision in wanted if (cell, revision) not in ids}


def close_refusals(
    writer: Writer, day: date, refused: Collection[tuple[Cell, int]], now: datetime
) -> None:
    """Refusals (cell, revision) where nothing is missing any more need nobody's attention."""
    if not refused:
        return
    rows = writer.connection.execute(
        select(meter_events).where(
            meter_events.c.usage_day == day, meter_events.c.state == State.REJECTED
        )
    )
    outcomes = [
        Outcome(
            row.id,
            State.REJECTED,
            error_code=SUPERSEDED,
            error_message=f"no longer owed; before: {row.error_code}: {row.error_message}",
        )
        for row in rows
        if (cell_of(row), row.revision) in refused
    ]
    change_state(writer, outcomes, now, was={State.REJECTED})


def remember(writer: Writer, changes: list[dict[str, Any]], now: datetime) -> None:
    """Add changes of state to the history."""
    if changes:
        writer.connection.execute(
            insert(history), [{**change, "at": now, "run": writer.run} for change in changes]
        )


def change(
    cell: Cell,
    revision: int | None,
    from_state: str | None,
    to_state: str,
    detail: str | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """A line of the history; `revision` is None for usage on hold."""
    return {
        **cell_columns(cell),
        "revision": revision,
        "from_state": from_state,
        "to_state": to_state,
        "request_id": request_id,
        "detail": detail,
    }


def _updated(row: Row[Any], outcome: Outcome, now: datetime) -> dict[str, Any]:
    """A row's new values. The first attempt, the acceptance and the request id are kept."""
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
