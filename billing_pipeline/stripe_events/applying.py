"""Applying what is due: each event and its mark in one transaction; one failure stops no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from billing_pipeline.customers.read_model import AskStripe
from billing_pipeline.database import writing
from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.ledger.account import not_for_us
from billing_pipeline.ledger.error_reports import StillSending
from billing_pipeline.ledger.ledger import Ledger, Writer
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.objects import NotThere, fetch
from billing_pipeline.stripe_events.handlers import HANDLERS, Handling
from billing_pipeline.stripe_events.inbox import EventState, Inbox, StoredEvent

MOST_QUESTIONS = 3
"""How often one event may send us to Stripe in one attempt."""


@dataclass
class Applied:
    """What applying came to: ids of events by what became of them, with the errors."""

    processed: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    postponed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Events that were looked at."""
        return sum(map(len, (self.processed, self.ignored, self.postponed, self.failed)))


def apply_due(
    inbox: Inbox,
    ledger: Ledger,
    gateway: StripeGateway,
    clock: Callable[[], datetime],
    progress: Callable[[int, int], None] | None = None,
) -> Applied:
    """Apply every event that is due; what an event does wrong stands on its row.

    Raises ConfigurationError for a missing or refused key, and what the database raises.
    An event of another mode or account than the ledger's is ignored.
    """
    applied = Applied()
    tried: set[str] = set()
    reader = _ObjectReader(gateway)
    while due := inbox.due(clock(), exclude=tried):
        for number, event in enumerate(due, start=1):
            tried.add(event.id)  # once in this call, whatever the clock does meanwhile
            _apply_one(inbox, ledger, reader, clock, event, applied)
            if progress is not None:
                progress(number, len(due))
    return applied


class _ObjectReader:
    """Questions to Stripe in one call; once it is away, nobody waits for it again."""

    def __init__(self, gateway: StripeGateway) -> None:
        self.gateway = gateway
        self._away: StripeUnreachable | None = None

    def ask(self, kind: str, object_id: str) -> dict[str, Any] | None:
        """An object as it is now, None where there is none. Raises StripeUnreachable."""
        if self._away is not None:
            raise self._away
        try:
            return asyncio.run(fetch(self.gateway, kind, object_id))
        except NotThere:
            return None
        except StripeUnreachable as error:
            self._away = error
            raise


def _apply_one(
    inbox: Inbox,
    ledger: Ledger,
    reader: _ObjectReader,
    clock: Callable[[], datetime],
    event: StoredEvent,
    applied: Applied,
) -> None:
    asked: dict[tuple[str, str], dict[str, Any] | None] = {}
    try:
        for _ in range(MOST_QUESTIONS):
            try:
                _in_one_transaction(inbox, ledger, reader.gateway, clock, event.id, asked, applied)
            except AskStripe as question:
                key = question.kind, question.object_id
                asked[key] = reader.ask(*key)
            else:
                return
        raise RuntimeError("Stripe's answers did not resolve it")
    except ConfigurationError:
        raise  # no fault of the event's
    except (StripeUnreachable, StillSending) as error:
        inbox.postpone(event, str(error), clock(), counts=False)
        applied.postponed[event.id] = str(error)
    # A poisonous event fails alone: whatever it raised stands on its row, for people to read.
    except Exception as error:
        if isinstance(error, DBAPIError) and _is_the_databases_fault(error):
            raise
        message = _message(error)
        failed = inbox.postpone(event, message, clock())
        (applied.failed if failed else applied.postponed)[event.id] = message


def _is_the_databases_fault(error: DBAPIError) -> bool:
    """Whether no event could be applied now: no connection, no space, no lock.

    PostgreSQL says by its SQLSTATE's class what it is about: 08 connection, 25 transaction,
    40 deadlock, 53 resources, 57 shutdown, 58 system.
    """
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error, InterfaceError | OperationalError) and state is None:
        return True
    return state is not None and state[:2] in ("08", "25", "40", "53", "57", "58")


def _message(error: Exception) -> str:
    """An error in words, without what the event itself says: that may be private."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        where = (f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)
        return f"{error.title} is not as expected: {'; '.join(where)}"[:1000]
    if isinstance(error, DBAPIError):
        return f"the database does not take it: {type(error.orig).__name__}"
    return f"{type(error).__name__}: {error}"[:1000]


def _in_one_transaction(
    inbox: Inbox,
    ledger: Ledger,
    gateway: StripeGateway,
    clock: Callable[[], datetime],
    event_id: str,
    asked: dict[tuple[str, str], dict[str, Any] | None],
    applied: Applied,
) -> None:
    with writing(inbox.engine) as connection:
        event = inbox.take(connection, event_id)
        if event is None:
            return
        why = not_for_us(connection, event.livemode, event.account, gateway.livemode)
        handler = HANDLERS.get(event.type)
        if why is None and handler is None:
            why = "no handler acts on this type"
        if why is None and handler is not None:
            why = handler(Handling(Writer(connection, ledger.run), clock(), asked), event)
        state = EventState.PROCESSED if why is None else EventState.IGNORED
        inbox.mark(connection, event, state, clock(), why)
    (applied.processed if why is None else applied.ignored).append(event_id)
