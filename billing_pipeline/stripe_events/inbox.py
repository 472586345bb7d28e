"""The event records as the pipeline works on them.

Due events are found by state, never by a cursor over ids or times: a slow transaction may commit an
event behind any cursor.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, or_, select, update

from billing_pipeline.database import writing
from billing_pipeline.ledger.locks import APPLYING, lock_until_commit
from webhook_handler.tables import stripe_events

MOST_ATTEMPTS = 8
"""After so many attempts an event is `failed` and waits for a person."""

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)


class EventState(StrEnum):
    """The state of a stored event."""

    RECEIVED = "received"  # waits to be applied, maybe again
    PROCESSED = "processed"
    IGNORED = "ignored"  # there was nothing to apply; it can be replayed
    FAILED = "failed"  # it could not be applied; it can be replayed


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as Stripe sent it. `payload` is its JSON."""

    id: str
    type: str
    style: str
    livemode: bool
    account: str | None
    created: datetime
    payload: str
    attempts: int

    @property
    def object(self) -> dict[str, Any]:
        """The object in a snapshot event. Raises KeyError if there is none."""
        found: dict[str, Any] = json.loads(self.payload)["data"]["object"]
        return found


class Inbox:
    """The event records in one database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def due(
        self, now: datetime, limit: int = 500, exclude: Collection[str] = ()
    ) -> list[StoredEvent]:
        """Events to apply now, without `exclude`, in the order in which Stripe created them."""
        with self.engine.begin() as connection:
            ids = connection.scalars(
                select(stripe_events.c.id)
                .where(_due(now))
                .order_by(stripe_events.c.created, stripe_events.c.id)
            )
            wanted = list(islice((id for id in ids if id not in exclude), limit))
            rows = connection.execute(
                select(stripe_events)
                .where(stripe_events.c.id.in_(wanted))
                .order_by(stripe_events.c.created, stripe_events.c.id)
            ).all()
        return [_event(row) for row in rows]

    def claim(self, connection: Connection, event_id: str) -> StoredEvent | None:
        """Lock an event for this transaction; None if another process has applied it."""
        # One process applies at a time, because two events of one object would race for its row.
        lock_until_commit(connection, APPLYING)
        row = connection.execute(
            select(stripe_events)
            .where(stripe_events.c.id == event_id, stripe_events.c.state == EventState.RECEIVED)
            .with_for_update()
        ).one_or_none()
        return None if row is None else _event(row)

    def mark(
        self,
        connection: Connection,
        event: StoredEvent,
        state: EventState,
        now: datetime,
        why: str | None = None,
    ) -> None:
        """Set the state of an event, in the transaction that applied it."""
        connection.execute(
            update(stripe_events)
            .where(stripe_events.c.id == event.id)
            .values(
                state=state,
                attempts=event.attempts + 1,
                last_error=why,
                retry_at=None,
                processed_at=now,
            )
        )

    def postpone(
        self, event: StoredEvent, error: str, now: datetime, *, counts: bool = True
    ) -> bool:
        """Store an event's error and retry it later; True if it has failed for good.

        `counts` is False for errors that are not the event's, such as an unreachable Stripe.
        """
        attempts = event.attempts + counts
        failed = attempts >= MOST_ATTEMPTS
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, attempts - 1))
        with writing(self.engine) as connection:
            connection.execute(
                update(stripe_events)
                .where(stripe_events.c.id == event.id, stripe_events.c.state == EventState.RECEIVED)
                .values(
                    state=EventState.FAILED if failed else EventState.RECEIVED,
                    attempts=attempts,
                    last_error=error,
                    retry_at=None if failed else now + pause,
                )
            )
        return failed

    def replay(
        self, ids: Sequence[str] = (), type: str | None = None, state: EventState | None = None
    ) -> list[str]:
        """Make events due again, by ids, or by type and state; returns their ids.

        Events that still wait to be applied stay as they are.
        """
        which = [stripe_events.c.state != EventState.RECEIVED]
        if ids:
            which.append(stripe_events.c.id.in_(ids))
        if type is not None:
            which.append(stripe_events.c.type == type)
        if state is not None:
            which.append(stripe_events.c.state == state)
        with writing(self.engine) as connection:
            found = list(connection.scalars(select(stripe_events.c.id).where(*which)))
            connection.execute(
                update(stripe_events)
                .where(*which)
                .values(state=EventState.RECEIVED, attempts=0, retry_at=None, last_error=None)
            )
        return found

    def records(
        self,
        *,
        ids: Sequence[str] = (),
        type: str | None = None,
        state: EventState | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Event records to be shown, the newest first; with payloads only if asked for by id."""
        query = select(stripe_events).order_by(
            stripe_events.c.created.desc(), stripe_events.c.id.desc()
        )
        if ids:
            query = query.where(stripe_events.c.id.in_(ids))
        if type is not None:
            query = query.where(stripe_events.c.type == type)
        if state is not None:
            query = query.where(stripe_events.c.state == state)
        with self.engine.begin() as connection:
            rows = connection.execute(query.limit(limit)).all()
        return [_record(row, with_payload=bool(ids)) for row in rows]

    def counts(self) -> dict[str, int]:
        """The number of event records by state, with every state."""
        counts = {str(state): 0 for state in EventState}
        with self.engine.begin() as connection:
            for state, number in connection.execute(
                select(stripe_events.c.state, func.count()).group_by(stripe_events.c.state)
            ):
                counts[state] = number
        return counts

    def waiting(self) -> list[tuple[str, int]]:
        """Every event that waits to be applied, due or not, with its attempts."""
        with self.engine.begin() as connection:
            rows = connection.execute(
                select(stripe_events.c.id, stripe_events.c.attempts)
                .where(stripe_events.c.state == EventState.RECEIVED)
                .order_by(stripe_events.c.id)
            )
            return [(row.id, row.attempts) for row in rows]

    def oldest_waiting(self) -> datetime | None:
        """When the oldest event that waits to be applied was received."""
        with self.engine.begin() as connection:
            received: datetime | None = connection.scalar(
                select(func.min(stripe_events.c.received)).where(
                    stripe_events.c.state == EventState.RECEIVED
                )
            )
        return received


def _due(now: datetime) -> Any:
    return and_(
        stripe_events.c.state == EventState.RECEIVED,
        or_(stripe_events.c.retry_at.is_(None), stripe_events.c.retry_at <= now),
    )


def _event(row: Any) -> StoredEvent:
    return StoredEvent(
        row.id,
        row.type,
        row.style,
        row.livemode,
        row.account,
        row.created,
        row.payload,
        row.attempts,
    )


def _record(row: Any, *, with_payload: bool) -> dict[str, Any]:
    record = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row._mapping.items()
    }
    payload = record.pop("payload")
    # NaN and the infinities are not JSON, so they are shown as text.
    return (
        {**record, "payload": json.loads(payload, parse_constant=str)} if with_payload else record
    )
