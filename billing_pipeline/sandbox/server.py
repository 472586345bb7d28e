"""uvicorn around the sandbox, on the loopback only."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from billing_pipeline.sandbox.app import Clock, Sandbox, make_app
from billing_pipeline.sandbox.billing import Billing
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.stripe_state import Account
from billing_pipeline.sandbox.webhooks import WebhookDelivery

HOST = "127.0.0.1"
START_SECONDS = 120
"""How long a busy machine may take to start the server."""


def make_sandbox(
    *,
    faults: Faults | None = None,
    seed: int = 0,
    now: datetime | None = None,
    state: Path | None = None,
    account_id: str = "acct_sandbox",
) -> Sandbox:
    """A sandbox whose clock starts at `now` (default: real time).

    `state` is the file that keeps it; without one it lives in memory.
    """
    clock = Clock(time.time)
    if now is not None:
        clock.offset = now.timestamp() - time.time()
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
    account = Account(clock, account_id, journal=state)
    webhooks = WebhookDelivery(account.outbox, time.time, seed)
    sandbox = Sandbox(account, clock, faults or Faults(), Billing(account), webhooks, seed)
    webhooks.faults = lambda: sandbox.faults
    return sandbox


def make_server(app: ASGIApp, port: int) -> uvicorn.Server:
    """A uvicorn server for the application. It logs no cut connections: they are intended."""
    return uvicorn.Server(
        uvicorn.Config(app, host=HOST, port=port, log_level="critical", access_log=False)
    )


def listen(port: int) -> socket.socket:
    """A socket on the loopback; port 0 picks a free one."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    return listener


@contextmanager
def running(sandbox: Sandbox, app: ASGIApp | None = None) -> Iterator[str]:
    """Serve on a free port in a thread of this process; yields the base address.

    `app` answers the requests; default: the sandbox's own application.
    """
    with listen(0) as listener:
        server = make_server(app or make_app(sandbox), listener.getsockname()[1])
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        give_up = time.monotonic() + START_SECONDS
        while not server.started:
            if time.monotonic() > give_up or not thread.is_alive():
                raise RuntimeError("the sandbox did not start")
            time.sleep(0.01)
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
