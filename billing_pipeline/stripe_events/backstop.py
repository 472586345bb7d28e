"""The backstop for missed webhooks: events that Stripe lists and no webhook delivered are stored.

They are applied like all other events.
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime

from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.objects import list_events
from billing_pipeline.stripe_events.handlers import SNAPSHOT_TYPES, THIN_TYPES
from billing_pipeline.stripe_events.inbox import Inbox
from webhook_handler.envelope import read
from webhook_handler.signature import Refused
from webhook_handler.store import EventStore

log = logging.getLogger(__name__)


def fetch_missed(
    inbox: Inbox, gateway: StripeGateway, since: datetime, now: datetime
) -> tuple[int, list[str]]:
    """Store the events that Stripe lists since an instant and that are missing here.

    Returns how many events Stripe listed, and the ids of the missing ones. An event that cannot be
    read is logged and skipped. Raises StripeUnreachable, ConfigurationError.
    """
    return asyncio.run(_fetch_missed(EventStore(inbox.engine), gateway, since, now))


async def _fetch_missed(
    store: EventStore, gateway: StripeGateway, since: datetime, now: datetime
) -> tuple[int, list[str]]:
    listed, missing = 0, []
    async for event in list_events(gateway, since, SNAPSHOT_TYPES, THIN_TYPES):
        listed += 1
        text = json.dumps(event)
        try:
            envelope = read(text)
        except Refused as refused:
            log.error("Stripe lists an event that cannot be stored: %s", refused)
            continue
        if store.keep(envelope, text, now, "backstop"):
            missing.append(envelope.id)
    return listed, missing
