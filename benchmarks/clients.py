"""The cost of each HTTP client of the Stripe SDK: meter events without limit and without ledger.

The sandbox runs in its own process. Synchronous clients run in threads, asynchronous ones in as
many tasks.
"""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import stripe

from benchmarks.fixtures import make_customers, running_sandbox
from billing_pipeline.stripe_api.client import CONNECTIONS, TIMEOUT

AT_ONCE = 100
"""Requests at the same time."""


def measure_clients(home: Path, events: int) -> list[dict[str, Any]]:
    """One row of the table for each client that is installed; keys are its columns."""
    home.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, run in CLIENTS.items():
        if name == "httpx" and importlib.util.find_spec("httpx") is None:
            continue
        with tempfile.TemporaryDirectory(dir=home, prefix="clients-") as folder:
            state = Path(folder) / "stripe.jsonl"
            [customer] = make_customers(state, 1).values()
            with running_sandbox(state, 0) as base:
                _make_meter(base)
                cpu, begun = time.process_time(), time.perf_counter()
                run(base, customer, events)
                seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        rows.append(
            {
                "client": name,
                "calls": events,
                "calls /s": round(events / seconds),
                "CPU ms a call": round(1000 * cpu / events, 2),
            }
        )
    return rows


def _client(base: str, http: stripe.HTTPClient) -> stripe.StripeClient:
    return stripe.StripeClient(
        "sk_test_benchmark",
        base_addresses={"api": base, "meter_events": base},
        max_network_retries=0,
        http_client=http,
    )


def _make_meter(base: str) -> None:
    _client(base, stripe.RequestsClient()).v1.billing.meters.create(
        {
            "display_name": "Readings",
            "event_name": "readings",
            "default_aggregation": {"formula": "sum"},
        }
    )


def _event(customer: str, number: int) -> Any:
    return {
        "event_name": "readings",
        "identifier": f"benchmark-{number}",
        "timestamp": int(time.time()),
        "payload": {"stripe_customer_id": customer, "value": "1"},
    }


def _by_threads(make: Callable[[], stripe.HTTPClient]) -> Callable[[str, str, int], None]:
    def run(base: str, customer: str, events: int) -> None:
        client = _client(base, make())
        with ThreadPoolExecutor(AT_ONCE) as threads:
            create = client.v1.billing.meter_events.create
            for _ in threads.map(lambda n: create(_event(customer, n)), range(events)):
                pass

    return run


def _by_tasks(
    opened: Callable[[], AbstractAsyncContextManager[stripe.HTTPClient]],
) -> Callable[[str, str, int], None]:
    async def send_all(base: str, customer: str, events: int) -> None:
        numbers = iter(range(events))
        async with opened() as http:
            create = _client(base, http).v1.billing.meter_events.create_async

            async def send_some() -> None:
                for number in numbers:
                    await create(_event(customer, number))

            await asyncio.gather(*(send_some() for _ in range(AT_ONCE)))

    return lambda base, customer, events: asyncio.run(send_all(base, customer, events))


@asynccontextmanager
async def _aiohttp() -> AsyncIterator[stripe.HTTPClient]:
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
        yield stripe.AIOHTTPClient(session=session, timeout=TIMEOUT)


@asynccontextmanager
async def _httpx() -> AsyncIterator[stripe.HTTPClient]:
    yield stripe.HTTPXClient()


CLIENTS: dict[str, Callable[[str, str, int], None]] = {
    "aiohttp": _by_tasks(_aiohttp),
    "httpx": _by_tasks(_httpx),
    "requests": _by_threads(lambda: stripe.RequestsClient()),
    "urllib": _by_threads(lambda: stripe.UrllibClient()),
}
