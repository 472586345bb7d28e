"""The HTTP side: verify, store, answer. An event is committed before it is answered with 200."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from webhook_handler import metrics
from webhook_handler.envelope import Envelope, read
from webhook_handler.signature import Refused, verify
from webhook_handler.store import EventStore

LARGEST_BODY = 2**20
"""Bytes. Stripe's events are far smaller. A larger body is refused before its end."""

BODY_SECONDS = 10.0
"""The time limit for receiving a body."""

STORE_SECONDS = 8.0
"""The time limit for the database; after it Stripe is asked to try again."""

THREADS = 16
"""Transactions at once in one process, on PostgreSQL. SQLite writes one at a time."""

T = TypeVar("T")

log = logging.getLogger("webhook_handler")


def utc_now() -> datetime:
    """The clock of production."""
    return datetime.now(UTC)


class WebhookApp:
    """The endpoints of a store. `clock` gives the time by which signatures are recent or not."""

    def __init__(
        self, store: EventStore, secrets: Sequence[str], clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._secrets = tuple(secrets)
        self._clock = clock
        one_writer = store.engine.dialect.name == "sqlite"
        self._storing = CapacityLimiter(1 if one_writer else THREADS)
        # Reads must not wait for writers.
        self._reading = CapacityLimiter(2)

    def starlette(self) -> Starlette:
        """The ASGI application."""
        app = Starlette(
            routes=[
                Route("/stripe/webhook", self.webhook, methods=["POST"]),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics),
                Route("/openapi.json", self.openapi),
            ]
        )
        app.router.redirect_slashes = False  # Stripe follows no redirects
        return app

    async def webhook(self, request: Request) -> Response:
        """POST /stripe/webhook."""
        try:
            body = await _read_body(request)
            header = request.headers.get("stripe-signature")
            verify(body, header, self._secrets, self._clock().timestamp())
            envelope = read(body)
            new = await self._keep(envelope, body)
        except Refused as refused:
            metrics.REFUSED.labels(refused.reason).inc()
            log.warning("refused", extra={"reason": refused.reason, "status": refused.status})
            answer = {"error": refused.reason, "message": str(refused)}
            # The rest of a body that was not read to its end is dropped with the connection.
            headers = {"connection": "close"} if refused.status in (408, 413) else {}
            return JSONResponse(answer, refused.status, headers)
        details = {"stripe_event": envelope.id, "type": envelope.type, "style": envelope.style}
        log.info("stored" if new else "known", extra=details)
        return JSONResponse({"status": "stored" if new else "known"})

    async def _keep(self, envelope: Envelope, body: str) -> bool:
        """Commit the event; True if it is new. Raises Refused with 503 if that takes too long."""
        started = time.perf_counter()
        keep = partial(self._store.keep, envelope, body, self._clock(), "webhook")
        try:
            with anyio.fail_after(STORE_SECONDS):
                # After the limit the thread may still commit: the next delivery is then `known`.
                new = await anyio.to_thread.run_sync(
                    keep, abandon_on_cancel=True, limiter=self._storing
                )
        except (SQLAlchemyError, TimeoutError) as error:
            log.error("not stored", extra={"error": _name(error)})
            message = "The event could not be stored; send it again."
            raise Refused("database", message, 503) from None
        metrics.STORE_SECONDS.observe(time.perf_counter() - started)
        if new:
            metrics.RECEIVED.labels(envelope.style).inc()
        else:
            metrics.DUPLICATES.inc()
        return new

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: the process is alive."""
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: the database can be reached and its schema is current."""
        try:
            current = await self._read(self._store.is_ready)
        except (SQLAlchemyError, TimeoutError) as error:
            answer = {
                "status": "not ready",
                "reason": f"the database does not answer ({_name(error)})",
            }
            return JSONResponse(answer, 503)
        if not current:
            answer = {
                "status": "not ready",
                "reason": "the schema is not current: run `webhook-handler migrate`",
            }
            return JSONResponse(answer, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: the counters always, the backlog if the database answers."""
        try:
            backlog = await self._read(self._store.backlog)
        except (SQLAlchemyError, TimeoutError):
            backlog = None
        page = metrics.page(backlog, self._clock())
        return PlainTextResponse(page, media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        page = resources.files("webhook_handler").joinpath("openapi.json").read_bytes()
        return Response(page, media_type="application/json")

    async def _read(self, query: Callable[[], T]) -> T:
        with anyio.fail_after(STORE_SECONDS):
            return await anyio.to_thread.run_sync(
                query, abandon_on_cancel=True, limiter=self._reading
            )


async def _read_body(request: Request) -> str:
    """The body as text, up to LARGEST_BODY bytes. Raises Refused."""
    too_large = Refused("too_large", f"The body is larger than {LARGEST_BODY} bytes.", 413)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > LARGEST_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > LARGEST_BODY:
                    raise too_large
    except ClientDisconnect:
        raise Refused("incomplete", "The connection ended before the end of the body.") from None
    except TimeoutError:
        raise Refused(
            "too_slow", f"The body did not end within {BODY_SECONDS:.0f} seconds.", 408
        ) from None
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Refused("unreadable", "The body is not UTF-8.") from None


def _name(error: BaseException) -> str:
    """The kind of an error. Its text may contain names of hosts and users."""
    return type(getattr(error, "orig", None) or error).__name__
