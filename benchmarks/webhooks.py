"""Webhooks, from the signed request to the answer, compared with bare inserts of the same rows.

The service is the `webhook-handler` command with two workers. Four clients post to it at the same
time. Each is a process with one connection, and waits for an answer before it posts again. A body
is a subscription with two metered prices in Stripe's format, 3 KB. All requests are signed and
encoded before the clock starts, and clients use a bare socket, so that they cost little. Clients,
workers and PostgreSQL share the cores of this machine.

The bare inserts are made by four processes, too, each with its own connection, into a fresh
database with the same schema, indexes and durability (`make_engine`). A row is one statement of the
driver that commits by itself, ON CONFLICT DO NOTHING. Both kinds alternate, so that a busy moment
of the disk affects both, and the rates are medians.

The kernel assigns connections to the workers, evenly or not. "busier worker" is the larger share.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import pairwise, repeat
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.request import urlopen

import stripe
from sqlalchemy import func, select

from benchmarks.fixtures import new_database, running_postgres
from billing_pipeline.sandbox.events import notification
from billing_pipeline.sandbox.server import make_sandbox
from webhook_handler.database import make_engine, migrate
from webhook_handler.envelope import read
from webhook_handler.tables import stripe_events

WORKERS, CLIENTS, ROUNDS = 2, 4, 3
SECRET = "whsec_benchmark"
LONGEST_SECONDS = 300
"""After this time the service refuses signatures from before the start."""

Job = Callable[[], object]
_start: Barrier  # set in the process of a client


def measure_webhooks(home: Path, events: int) -> list[dict[str, Any]]:
    """A row of the table for each kind of database. Raises if a database lacks an event."""
    home.mkdir(parents=True, exist_ok=True)
    bodies = _make_bodies(events)
    with tempfile.TemporaryDirectory(dir=home, prefix="webhooks-") as name:
        folder = Path(name)
        files = (f"sqlite:///{folder}/{n}.db" for n in range(2 * ROUNDS))
        rows = [_measure("SQLite", folder, files, bodies)]
        with running_postgres(folder) as server:
            databases = (new_database(server, f"bench_{n}") for n in range(2 * ROUNDS))
            rows.append(_measure("PostgreSQL", folder, databases, bodies))
    return rows


def _measure(name: str, folder: Path, urls: Iterator[str], bodies: list[str]) -> dict[str, Any]:
    log = folder / "service.log"
    bare, stored, busier, answers = [], [], [], []
    for _ in range(ROUNDS):
        with _fresh(next(urls), len(bodies)) as url:
            bare.append(_at_once(partial(_prepare_inserts, url), bodies)[0])
        with _fresh(next(urls), len(bodies)) as url, _service(log, url) as port:
            rate, seconds = _at_once(partial(_prepare_posts, port), bodies)
        stored.append(rate)
        answers += seconds
        lines = [line for line in log.read_text("utf-8").splitlines() if '"stored"' in line]
        workers = Counter(json.loads(line)["process"] for line in lines)
        busier.append(max(workers.values()) / len(bodies))
    percentiles = quantiles(answers, n=100)
    return {
        "database": name,
        "events": len(bodies),
        "repetitions": ROUNDS,
        "events / s": round(median(stored)),
        "busier worker": f"{median(busier):.0%}",
        "answer p50 ms": round(1000 * percentiles[49], 1),
        "answer p99 ms": round(1000 * percentiles[98], 1),
        "bare inserts / s": round(median(bare)),
        "share of bare": f"{median(stored) / median(bare):.0%}",
    }


def _make_bodies(number: int) -> list[str]:
    """Distinct events of one subscription, in Stripe's formatting."""
    sandbox = make_sandbox()
    items = []
    for name in ("active_sensors", "temperature_readings"):
        meter = {"event_name": name, "display_name": name}
        meter_id = sandbox.account.make_meter({**meter, "default_aggregation": {"formula": "sum"}})
        recurring = {"interval": "month", "meter": meter_id["id"]}
        price = {"currency": "usd", "unit_amount": "1", "recurring": recurring}
        items.append({"price": sandbox.billing.make_price(price)["id"]})
    customer = sandbox.account.make_customer({"name": "org-00001"})["id"]
    sandbox.billing.subscribe({"customer": customer, "items": items})
    body = notification(sandbox.account.outbox.events[-1])
    ids = (sha256(str(n).encode()).hexdigest()[:24] for n in range(number))  # in no order
    return [json.dumps({**body, "id": f"evt_{id}"}, indent=2) for id in ids]


def _at_once(
    prepare: Callable[[list[str]], list[Job]], bodies: list[str]
) -> tuple[float, list[float]]:
    """Process all bodies, a share in each client: how many a second, and the seconds of each."""
    spawn = get_context("spawn")
    shares = [bodies[n::CLIENTS] for n in range(CLIENTS)]
    with ProcessPoolExecutor(CLIENTS, spawn, _meet_at, (spawn.Barrier(CLIENTS),)) as pool:
        clients = list(pool.map(_one_client, repeat(prepare), shares, timeout=LONGEST_SECONDS))
    seconds = max(each[-1] for each in clients) - min(each[0] for each in clients)
    return len(bodies) / seconds, [b - a for each in clients for a, b in pairwise(each)]


def _meet_at(barrier: Barrier) -> None:
    global _start
    _start = barrier


def _one_client(prepare: Callable[[list[str]], list[Job]], bodies: list[str]) -> list[float]:
    """The work of a client's process: the instants before, between and after its jobs."""
    jobs = prepare(bodies)
    _start.wait(60)
    instants = [time.monotonic()]  # one clock for all processes
    for job in jobs:
        job()
        instants.append(time.monotonic())
    return instants


def _prepare_posts(port: int, bodies: list[str]) -> list[Job]:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    ready = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    _exchange(connection, ready, b'{"status":"ready"}')  # a worker has accepted the connection
    stored = b'{"status":"stored"}'
    return [partial(_exchange, connection, _signed(body), stored) for body in bodies]


def _signed(body: str) -> bytes:
    signature = stripe.WebhookSignature.generate_signature_header(body, SECRET)
    return (
        "POST /stripe/webhook HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nstripe-signature: {signature}\r\n\r\n{body}"
    ).encode("ascii")


def _exchange(connection: socket.socket, request: bytes, expected: bytes) -> None:
    connection.sendall(request)
    answer = b""
    while not answer.endswith(b"}"):  # every answer of the service ends with it
        more = connection.recv(65536)
        assert more, f"the service hung up after {answer!r}"
        answer += more
    assert answer.endswith(expected), answer


def _prepare_inserts(url: str, bodies: list[str]) -> list[Job]:
    opened = make_engine(url).raw_connection()
    connection: Any = opened.driver_connection
    opened.detach()
    sqlite = url.startswith("sqlite")
    if not sqlite:
        connection.autocommit = True  # make_engine sets the SQLite driver so
    insert = (
        "INSERT INTO stripe_events (id, type, style, api_version, livemode, account, created, "
        f"received, source, payload) VALUES ({', '.join(['?' if sqlite else '%s'] * 10)}) "
        "ON CONFLICT DO NOTHING"
    )
    jobs: list[Job] = []
    for body in bodies:
        event = read(body)
        named = (event.id, event.type, event.style, event.api_version, event.livemode)
        when = [event.created_utc, datetime.now(UTC)]
        times = [f"{each:%Y-%m-%d %H:%M:%S.%f}" for each in when] if sqlite else when
        row = (*named, event.account, *times, "webhook", body)
        jobs.append(partial(connection.execute, insert, row))
    return jobs


@contextmanager
def _fresh(url: str, expected: int) -> Iterator[str]:
    """An empty migrated database. Afterwards it must have exactly the expected events."""
    engine = make_engine(url)
    migrate(engine)
    engine.dispose()
    yield url
    with engine.begin() as connection:
        found = connection.scalar(select(func.count()).select_from(stripe_events))
    engine.dispose()
    assert found == expected, f"{found} events stored of {expected}"


@contextmanager
def _service(log: Path, database_url: str) -> Iterator[int]:
    """The service in its own processes; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    foreign = ("BILLING_", "PROMETHEUS_", "STRIPE_", "WEBHOOK_")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "BILLING_DATABASE_URL": database_url,
    }
    start = [sys.executable, "-c", "from webhook_handler.server import main; main()"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(WORKERS)]
    with log.open("wb") as out:
        service = subprocess.Popen(
            [*start, *options], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(300):
            assert service.poll() is None, log.read_text()
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10):
                break
            time.sleep(0.1)
        yield port
    finally:
        service.terminate()
        try:
            service.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(service.pid, signal.SIGKILL)  # its workers too
            service.wait(timeout=10)
