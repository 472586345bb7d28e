"""Storing each event once, however often it is delivered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Engine, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from webhook_handler.database import is_current, writing
from webhook_handler.envelope import Envelope
from webhook_handler.tables import stripe_events

Source = Literal["webhook", "backstop"]

# Built once: building them for each event takes half of its CPU time.
_INSERTS = {
    dialect.__name__.rsplit(".", 1)[-1]: dialect.insert(stripe_events)
    .on_conflict_do_nothing()
    .returning(stripe_events.c.id)
    for dialect in (postgresql, sqlite)
}
_COUNT_AGAIN = (
    update(stripe_events)
    .where(stripe_events.c.id == bindparam("known"))
    .values(redeliveries=stripe_events.c.redeliveries + 1)
)


@dataclass(frozen=True)
class Backlog:
    """Events by state, and when the oldest event that waits to be applied was received."""

    by_state: dict[str, int]
    oldest_received: datetime | None


class EventStore:
    """The event records in one database. Each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def keep(self, envelope: Envelope, payload: str, now: datetime, source: Source) -> bool:
        """Store and commit an event; False if it was stored before.

        The insert itself detects that: another worker could write between a check and an insert.
        """
        row = {
            "id": envelope.id,
            "type": envelope.type,
            "style": envelope.style,
            "api_version": envelope.api_version,
            "livemode": envelope.livemode,
            "account": envelope.account,
            "created": envelope.created_utc,
            "received": now,
            "source": source,
            "payload": payload,
        }
        with writing(self.engine) as connection:
            if connection.scalar(_INSERTS[self.engine.dialect.name], row) is not None:
                return True
            if source == "webhook":
                connection.execute(_COUNT_AGAIN, {"known": envelope.id})
        return False

    def backlog(self) -> Backlog:
        """How many events are in each state, and since when the oldest one waits."""
        with self.engine.begin() as connection:
            counts = connection.execute(
                select(stripe_events.c.state, func.count().label("number")).group_by(
                    stripe_events.c.state
                )
            ).all()
            oldest = connection.scalar(
                select(stripe_events.c.received)
                .where(stripe_events.c.state == "received")
                .order_by(stripe_events.c.received)
                .limit(1)
            )
        return Backlog({row.state: row.number for row in counts}, oldest)

    def is_ready(self) -> bool:
        """Whether the schema is current. Raises SQLAlchemyError if the database does not answer."""
        with self.engine.begin() as connection:
            return is_current(connection)
