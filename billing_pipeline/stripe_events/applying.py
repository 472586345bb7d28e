"""Applying due events, each in one transaction with its new state. One failure stops no other."""

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
from billing_pipeline.errors import BillingError, ConfigurationError, StripeUnreachable
from billing_pipeline.ledger.account import not_for_us
from billing_pipeline.ledger.error_reports import StillSending
from billing_pipeline.ledger.ledger import Ledger, Writer
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.objects import NotThere, fetch
from billing_pipeline.stripe_events.handlers import HANDLERS, Answers, Handling
from billing_pipeline.stripe_events.inbox import EventState, Inbox, StoredEvent

MOST_QUESTIONS = 3
"""How often one event may make us ask Stripe in one attempt."""


@dataclass
class Applied:
    """Ids of events by their new state, with the errors."""

    processed: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    postponed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of these events."""
        return sum(map(len, (self.processed, self.ignored, self.postponed, self.failed)))


def apply_due(
    inbox: Inbox,
    ledger: Ledger,
    gateway: StripeGateway,
    clock: Callable[[], datetime],
    progress: Callable[[int, int], None] | None = None,
) -> Applied:
    """Apply every event that is due. The error of an event is stored in its row.

    An event of another mode or account than the ledger's is ignored. Raises ConfigurationError for
    a missing or refused key, and errors of the database.
    """
    batch = _Batch(inbox, ledger, gateway, clock)
    tried: set[str] = set()
    while due := inbox.due(clock(), exclude=tried):
        for number, event in enumerate(due, start=1):
            tried.add(event.id)  # once in this call, however much time passes
            batch.apply(event)
            if progress is not None:
                progress(number, len(due))
    return batch.applied


class _Batch:
    """The events of one call. Once Stripe cannot be reached, it is not asked again."""

    def __init__(
        self, inbox: Inbox, ledger: Ledger, gateway: StripeGateway, clock: Callable[[], datetime]
    ) -> None:
        self._inbox = inbox
        self._ledger = ledger
        self._gateway = gateway
        self._clock = clock
        self._unreachable: StripeUnreachable | None = None
        self.applied = Applied()

    def apply(self, event: StoredEvent) -> None:
        """Apply an event, or postpone it with its error."""
        try:
            self._apply(event)
        except ConfigurationError:
            raise  # not the fault of the event
        except (StripeUnreachable, StillSending) as error:
            self._inbox.postpone(event, str(error), self._clock(), counts=False)
            self.applied.postponed[event.id] = str(error)
        # Any other error is the event's own: it is stored in its row, and the next event follows.
        except Exception as error:
            if isinstance(error, DBAPIError) and _is_the_databases_fault(error):
                raise
            message = _message(error)
            failed = self._inbox.postpone(event, message, self._clock())
            (self.applied.failed if failed else self.applied.postponed)[event.id] = message

    def _apply(self, event: StoredEvent) -> None:
        """Apply an event, and ask Stripe for the objects that its handler needs."""
        answers: Answers = {}
        for _ in range(MOST_QUESTIONS):
            try:
                return self._in_one_transaction(event.id, answers)
            except AskStripe as question:
                key = question.kind, question.object_id
                answers[key] = self._ask(*key)
        raise RuntimeError("its handler asks Stripe again and again")

    def _ask(self, kind: str, object_id: str) -> dict[str, Any] | None:
        """An object as it is now; None if there is none. Raises StripeUnreachable."""
        if self._unreachable is not None:
            raise self._unreachable
        try:
            return asyncio.run(fetch(self._gateway, kind, object_id))
        except NotThere:
            return None
        except StripeUnreachable as error:
            self._unreachable = error
            raise

    def _in_one_transaction(self, event_id: str, answers: Answers) -> None:
        with writing(self._inbox.engine) as connection:
            event = self._inbox.claim(connection, event_id)
            if event is None:
                return
            why = not_for_us(connection, event.livemode, event.account, self._gateway.livemode)
            handler = HANDLERS.get(event.type)
            if why is None and handler is None:
                why = "no handler acts on this type"
            if why is None and handler is not None:
                writer = Writer(connection, self._ledger.run)
                why = handler(Handling(writer, self._clock(), answers), event)
            state = EventState.PROCESSED if why is None else EventState.IGNORED
            self._inbox.mark(connection, event, state, self._clock(), why)
        (self.applied.processed if why is None else self.applied.ignored).append(event_id)


def _is_the_databases_fault(error: DBAPIError) -> bool:
    """Whether no event can be applied now: no connection, no space, no lock.

    The classes of PostgreSQL's SQLSTATE: 08 connection, 25 transaction, 40 deadlock, 53 resources,
    57 shutdown, 58 system.
    """
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error, InterfaceError | OperationalError) and state is None:
        return True
    return state is not None and state[:2] in ("08", "25", "40", "53", "57", "58")


def _message(error: Exception) -> str:
    """The message of an error, without values of the event: those may be private."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        fields = (f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)
        return f"{error.title} is not as expected: {'; '.join(fields)}"[:1000]
    if isinstance(error, DBAPIError):
        return f"the database refuses it: {type(error.orig).__name__}"
    if isinstance(error, BillingError):
        return str(error)[:1000]
    return f"{type(error).__name__}: {error}"[:1000]
