"""The webhook handler as a real process, and hands that post to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import stripe

from tests.support import eventually

SECRET, NEW_SECRET, THIN_SECRET = "whsec_old", "whsec_new", "whsec_thin"
SECRETS = f"{SECRET},{NEW_SECRET},{THIN_SECRET}"


@dataclass
class Handler:
    """A running service: its address, its main process, and where it logs."""

    base: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"{self.base}/stripe/webhook"

    def workers(self) -> list[psutil.Process]:
        """The worker processes; with one worker, the service itself."""
        children = psutil.Process(self.process.pid).children()
        found = [c for c in children if "resource_tracker" not in " ".join(_cmdline(c))]
        return found or [psutil.Process(self.process.pid)]

    def ask(self, path: str) -> tuple[int, bytes]:
        return request(self.base, "GET", path)

    def post(
        self, body: bytes, secret: str = SECRET, at: float | None = None, header: str | None = None
    ) -> tuple[int, Any]:
        """Post a signed body; answers with the status and the JSON."""
        status, answer = request(
            self.base,
            "POST",
            "/stripe/webhook",
            body,
            {"stripe-signature": header or sign(body, secret, at)},
        )
        return status, json.loads(answer)

    def metric(self, name: str) -> float:
        for line in self.ask("/metrics")[1].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return 0.0


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def sign(body: bytes, secret: str = SECRET, at: float | None = None) -> str:
    instant = int(time.time() if at is None else at)
    header = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, instant)
    return str(header)


def event_body(id: str, type: str = "invoice.paid", **more: Any) -> bytes:
    event = {
        "id": id,
        "object": "event",
        "api_version": "2025-12-15.clover",
        "created": 1_790_000_000,
        "livemode": False,
        "type": type,
        "data": {"object": {}},
    }
    return json.dumps({**event, **more}).encode()


def request(
    base: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(str(urlsplit(base).netloc), timeout=30)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):
            # A refused body is not read to its end; the answer is there all the same.
            connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_handler(
    folder: Path, database_url: str, workers: int = 1, secrets: str = SECRETS
) -> Iterator[Handler]:
    """The service on a free port, ended politely at the end."""
    port = free_port()
    log = folder / f"handler-{port}.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("STRIPE_")},
        "STRIPE_WEBHOOK_SECRET": secrets,
        "BILLING_DATABASE_URL": database_url,
    }
    command = [
        sys.executable, "-c", "from webhook_handler.server import main; main()",
        "--port", str(port), "--workers", str(workers),
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    handler = Handler(f"http://127.0.0.1:{port}", process, log)
    try:
        eventually(lambda: _answers(handler), 30, f"the handler answers: {log.read_text()}")
        yield handler
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _answers(handler: Handler) -> bool:
    assert handler.process.poll() is None, handler.log.read_text()
    try:
        return handler.ask("/healthz")[0] == 200
    except OSError:
        return False
