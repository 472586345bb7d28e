"""Reading Stripe's objects and events that webhooks left open or did not deliver.

Everything is read as plain JSON: events are stored as Stripe wrote them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import stripe

from billing_pipeline.errors import BillingError, ConfigurationError, StripeUnreachable
from billing_pipeline.stripe_api.client import ForeignAnswer, StripeGateway
from billing_pipeline.stripe_api.retrying import reading
from billing_pipeline.stripe_facts import MOST_PAGES, PAGE

PATHS = {
    "subscriptions": "/v1/subscriptions/{}",
    "invoices": "/v1/invoices/{}",
    "thin events": "/v2/core/events/{}",
}
"""Where each kind of object is read."""


class NotThere(BillingError):
    """Stripe does not have the object, or does not let this key read it."""

    exit_code = 1


async def fetch(gateway: StripeGateway, kind: str, object_id: str) -> dict[str, Any]:
    """An object as it is now; `kind` is a key of PATHS.

    Raises NotThere, StripeUnreachable, ConfigurationError.
    """
    async with gateway.client() as client:
        try:
            found = await _get(client, PATHS[kind].format(quote(object_id, safe="")), {}, "id")
            if found["id"] != object_id:
                raise StripeUnreachable(f"Stripe answered {found['id']} for {kind} {object_id}")
            return found
        except (stripe.InvalidRequestError, stripe.PermissionError) as error:
            raise NotThere(f"{kind} {object_id}: {error.user_message}") from None


async def list_events(
    gateway: StripeGateway,
    since: datetime,
    snapshot_types: Sequence[str],
    thin_types: Sequence[str],
) -> AsyncIterator[dict[str, Any]]:
    """Every event of these types since an instant: snapshot events, then thin ones, newest first.

    Raises StripeUnreachable, and ConfigurationError for a key that may not read events.
    """
    async with gateway.client() as client:
        try:
            async for event in _snapshot_events(client, since, snapshot_types):
                yield event
            async for event in _thin_events(client, since, thin_types):
                yield event
        except (stripe.InvalidRequestError, stripe.PermissionError) as error:
            raise ConfigurationError(
                f"Stripe does not let this key list events: {error.user_message}. "
                "The backstop for missed webhooks needs a key that may read events."
            ) from None


async def _snapshot_events(
    client: stripe.StripeClient, since: datetime, types: Sequence[str]
) -> AsyncIterator[dict[str, Any]]:
    parameters: dict[str, Any] = {
        "created": {"gte": int(since.timestamp())},
        "types": list(types),
        "limit": PAGE,
    }
    for _ in range(MOST_PAGES):
        page = await _get(client, "/v1/events", parameters, "data", "has_more")
        for event in page["data"]:
            yield event
        if not page["has_more"] or not page["data"]:
            return
        parameters["starting_after"] = page["data"][-1]["id"]


async def _thin_events(
    client: stripe.StripeClient, since: datetime, types: Sequence[str]
) -> AsyncIterator[dict[str, Any]]:
    path: str | None = "/v2/core/events"
    parameters: dict[str, Any] = {
        "created": {"gte": since.strftime("%Y-%m-%dT%H:%M:%SZ")},
        "types": list(types),
        "limit": PAGE,
    }
    for _ in range(MOST_PAGES):
        if path is None:
            return
        page = await _get(client, path, parameters, "data", "next_page_url")
        for event in page["data"]:
            yield event
        # The address of the next page contains the parameters.
        path, parameters = page["next_page_url"], {}


async def _get(
    client: stripe.StripeClient, path: str, parameters: dict[str, Any], *wanted: str
) -> dict[str, Any]:
    """The JSON object at a path. Raises StripeUnreachable if it has not the `wanted` keys."""

    async def once() -> dict[str, Any]:
        response = await client.raw_request_async("get", path, **parameters)
        found: dict[str, Any] = json.loads(response.body)
        if not all(key in found for key in wanted):
            raise ForeignAnswer(200)
        return found

    return await reading(once, f"reading {path}")
