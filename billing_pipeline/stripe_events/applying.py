"""Applying what is due: each event and its mark in one transaction; one failure stops no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError

from billing_pipeline.customers.read_model import AskStripe
from billing_pipeline.database import writing
from billing_pipeline.ledger import Ledger, StillSending
from billing_pipeline.settings import ConfigurationError
from billing_pipeline.stripe_events.handlers import HANDLERS, Desk
from billing_pipeline.stripe_events.inbox import EventState, Inbox, StoredEvent
from billing_pipeline.stripe_meters import StripeGateway, StripeUnreachable
from billing_pipeline.stripe_meters.objects import fetch

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
    while due := inbox.due(clock()):
        for number, event in enumerate(due, start=1):
            _apply_one(inbox, ledger, gateway, clock, event, applied)
            if progress is not None:
                progress(number, len(due))
    return applied


def _apply_one(
    inbox: Inbox,
    ledger: Ledger,
    gateway: StripeGateway,
    clock: Callable[[], datetime],
    event: StoredEvent,
    applied: Applied,
) -> None:
    asked: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        for _ in range(MOST_QUESTIONS):
            try:
                _in_one_transaction(inbox, ledger, gateway, clock, event.id, asked, applied)
            except AskStripe as question:
                key = question.kind, question.object_id
                asked[key] = asyncio.run(fetch(gateway, *key))
            else:
                return
        raise RuntimeError("Stripe's answers did not settle it")
    except (InterfaceError, OperationalError, ConfigurationError):
        raise  # no fault of the event's
    except (StripeUnreachable, StillSending) as error:
        inbox.postpone(event, str(error), clock(), counts=False)
        applied.postponed[event.id] = str(error)
    # A poisonous event fails alone: whatever it raised stands on its row, for people to read.
    except Exception as error:
        told = f"{type(error).__name__}: {error}"[:1000]
        failed = inbox.postpone(event, told, clock())
        (applied.failed if failed else applied.postponed)[event.id] = told


def _in_one_transaction(
    inbox: Inbox,
    ledger: Ledger,
    gateway: StripeGateway,
    clock: Callable[[], datetime],
    event_id: str,
    asked: dict[tuple[str, str], dict[str, Any]],
    applied: Applied,
) -> None:
    with writing(inbox.engine) as connection:
        event = inbox.take(connection, event_id)
        if event is None:
            return
        why = ledger.not_for_us(connection, event.livemode, event.account, gateway.livemode)
        handler = HANDLERS.get(event.type)
        if why is None and handler is None:
            why = "no handler acts on this type"
        if why is None and handler is not None:
            why = handler(Desk(connection, ledger, clock(), asked), event)
        state = EventState.PROCESSED if why is None else EventState.IGNORED
        inbox.mark(connection, event, state, clock(), why)
    (applied.processed if why is None else applied.ignored).append(event_id)
