"""The official SDK connected to the sandbox's application without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import stripe
from starlette.applications import Starlette
from starlette.types import Message

from billing_pipeline.settings import Settings
from billing_pipeline.simulation.crash_points import CrashPoints
from billing_pipeline.stripe_api.client import StripeGateway, check_answer


class InProcessClient(stripe.HTTPClient):
    """An HTTP client of the SDK that calls an ASGI application."""

    name = "in-process"

    def __init__(self, app: Starlette, crash_points: CrashPoints) -> None:
        super().__init__()
        self._app = app
        self._crash_points = crash_points

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, dict[str, str]]:
        """Make one request. An answer that breaks off raises what a broken connection raises."""
        self._crash_points.reach(between=True)  # before the request leaves
        target = urlsplit(url)
        body = (post_data or "").encode() if isinstance(post_data, str | None) else post_data
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method.upper(),
            "scheme": "http",
            "path": target.path,
            "raw_path": target.path.encode(),
            "query_string": target.query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), str(v).encode()) for k, v in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        status, answer, complete = 0, b"", False
        answered: dict[str, str] = {}

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, answer, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                answered.update({k.decode(): v.decode() for k, v in message["headers"]})
            else:
                answer += message.get("body", b"")
                complete = not message.get("more_body", False)

        await self._app(scope, receive, send)
        self._crash_points.reach()  # before the answer is known
        if not complete:
            raise aiohttp.ClientPayloadError("the answer broke off")
        check_answer(url, status, answer)
        return answer, status, answered

    async def close_async(self) -> None:
        """Do nothing: no connection is open."""


class InProcessGateway(StripeGateway):
    """A gateway whose clients call the sandbox's application."""

    def __init__(self, settings: Settings, app: Starlette, crash_points: CrashPoints) -> None:
        super().__init__(settings)
        self._app = app
        self._crash_points = crash_points

    @property
    def calls_per_second(self) -> int:
        """No limit: the clock is simulated."""
        return 10**6

    @asynccontextmanager
    async def client(self) -> AsyncIterator[stripe.StripeClient]:
        """A client for the running event loop."""
        base = self._settings.stripe_api_base
        yield stripe.StripeClient(
            self._settings.require_key(),
            stripe_version=self._settings.stripe_api_version,
            base_addresses={"api": base, "meter_events": base},
            max_network_retries=0,
            http_client=InProcessClient(self._app, self._crash_points),
        )
