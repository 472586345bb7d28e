"""The official SDK's client: made when first used, pinned to one API version.

The SDK's own retries are off: the ledger must know of every attempt, and the SDK would not retry a
429 anyway. The asynchronous client on aiohttp costs a quarter of the others' CPU.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import aiohttp
import stripe

from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.rules.model import Meter
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_facts import CALLS_PER_SECOND, ERROR_TYPES, REQUEST_TIMEOUT_SECONDS

CONNECTIONS = 400
"""aiohttp's default of 100 would cap a latency of 150 ms at 650 calls a second."""

TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS, connect=10)
"""Seconds."""

stripe.enable_telemetry = False  # it writes a file in the home folder and reports latencies

Clock = Callable[[], datetime]
"""Gives the time in UTC."""

Progress = Callable[[int, int], None]
"""Called with how many are done, of how many."""


class ForeignAnswer(aiohttp.ClientError):
    """An answer that is not Stripe's, such as a proxy's page. It says nothing about the request."""

    def __init__(self, status: int) -> None:
        super().__init__(
            f"an answer that is not Stripe's (HTTP {status}): look at STRIPE_API_BASE and at "
            "proxies in between"
        )
        self.status = status


def check_answer(url: str, status: int, body: bytes | str) -> None:
    """Raise ForeignAnswer unless a body has the shape of Stripe's answers.

    A refusal is an object with `error`, an object with one of Stripe's error types. Everything else
    is an object; a list among them has `data` and `has_more`. The SDK does not check this: it reads
    some pages as errors of Stripe, and fails on others with an AttributeError.
    """
    try:
        content = json.loads(body)
    except ValueError:  # UnicodeDecodeError, too
        raise ForeignAnswer(status) from None
    if not isinstance(content, dict):
        raise ForeignAnswer(status)
    if 200 <= status < 300:
        is_list = content.get("object") == "list"
        data = content.get("data")
        whole = isinstance(data, list) and isinstance(content.get("has_more"), bool)
        if is_list and not (whole and all(isinstance(item, dict) for item in data or ())):
            raise ForeignAnswer(status)
        return
    error = content.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        raise ForeignAnswer(status)
    is_v2_error = "/v2/" in url and isinstance(error.get("code"), str)  # it may have no type
    if status < 400 or not (error.get("type") in ERROR_TYPES or is_v2_error):
        raise ForeignAnswer(status)


class CheckedAnswers(stripe.HTTPClient):
    """An HTTP client of the SDK that only lets answers of Stripe's shape through."""

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """One request. Raises ForeignAnswer."""
        body, status, answered = await super().request_async(method, url, headers, post_data)
        check_answer(url, status, body)
        return body, status, answered


class _Client(CheckedAnswers, stripe.AIOHTTPClient):
    """The SDK's client on aiohttp. It follows no redirect: the key would go elsewhere."""

    def _get_request_args_kwargs(self, *given: Any) -> tuple[Any, dict[str, Any]]:
        args, kwargs = super()._get_request_args_kwargs(*given)
        return args, {**kwargs, "allow_redirects": False}


class StripeGateway:
    """Opens clients for one key; has the rates and addresses that go with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def calls_per_second(self) -> int:
        """The rate of this key."""
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
                http_client=_Client(session=session, timeout=TIMEOUT),
            )


@dataclass(frozen=True)
class MeterAccess:
    """A ledger, the meters that it reports to, and the way to them."""

    gateway: StripeGateway
    ledger: Ledger
    meters: Sequence[Meter]
    clock: Clock

    @cached_property
    def by_name(self) -> Mapping[str, Meter]:
        """The meters by event name."""
        return {meter.event_name: meter for meter in self.meters}

    @cached_property
    def replacing(self) -> Mapping[str, bool]:
        """By event name, whether newer values replace older ones."""
        return {meter.event_name: meter.replaces for meter in self.meters}
