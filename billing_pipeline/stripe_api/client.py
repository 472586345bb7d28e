"""The official SDK's client: made when first used, pinned to one API version.

The SDK's own retries are off: the ledger must know of every attempt, and the SDK would not
retry a 429 anyway. The asynchronous client on aiohttp costs a quarter of the others' CPU.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import stripe

from billing_pipeline.settings import (
    Settings,
)
from billing_pipeline.stripe_facts import CALLS_PER_SECOND, REQUEST_TIMEOUT_SECONDS

CONNECTIONS = 400
"""aiohttp's default of 100 would cap a latency of 150 ms at 650 calls a second."""

TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS, connect=10)
"""Seconds; in all, the SDK's own default. A request given up too early may still be at work."""

stripe.enable_telemetry = False  # it writes a file in the home folder and reports latencies


class StripeGateway:
    """Opens clients for one key; holds the rates and addresses that go with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def calls_per_second(self) -> int:
        """The rate this key may use."""
        return CALLS_PER_SECOND[self._settings.key_kind]

    @property
    def livemode(self) -> bool:
        """Whether the key is a live one."""
        return self._settings.livemode

    @property
    def reads_a_month(self) -> int:
        """How many summaries may be read in a month."""
        return self._settings.billing_verification_reads

    @asynccontextmanager
    async def client(self) -> AsyncIterator[stripe.StripeClient]:
        """A client for the running event loop. Raises ConfigurationError without a key."""
        key = self._settings.require_key()
        context = ssl.create_default_context(cafile=stripe.ca_bundle_path)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context)
        async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
            yield stripe.StripeClient(
                key,
                stripe_version=self._settings.stripe_api_version,
                base_addresses={
                    "api": self._settings.stripe_api_base,
                    "meter_events": self._settings.meter_events_base,
                },
                max_network_retries=0,
                http_client=stripe.AIOHTTPClient(session=session, timeout=TIMEOUT),
            )
