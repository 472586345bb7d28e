"""Stripe delivers to real processes: repeated, reordered, late, while workers are killed and the
database is stopped. Every event is stored exactly once, and what follows from them is right."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select

from billing_pipeline.operations.bill import apply_events
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.webhooks import Endpoint
from tests.postgres import address, postgres_folder, start_postgres
from tests.support import World, eventually
from tests.webhook_support import SECRET, THIN_SECRET, Handler, event_body, running_handler
from webhook_handler.database import make_engine
from webhook_handler.tables import stripe_events

EVENTS = 2000
KILLS = 15
STATUSES = ["active", "past_due", "unpaid", "paused"]


def connect(world: World, handler: Handler, connections: int = 12) -> None:
    world.sandbox.webhooks.endpoint = Endpoint(handler.url, SECRET, THIN_SECRET, connections)


def much_happens(world: World, chance: random.Random) -> None:
    """EVENTS events: checkouts, subscriptions that change, invoices, reports, several a second."""
    outbox = world.sandbox.account.outbox
    world.make_meters()
    subscriptions = []
    for n in range(200):
        session = world.sandbox.billing.open_checkout(
            {"mode": "payment", "client_reference_id": f"org-{n}"}
        )
        session = world.sandbox.billing.complete_checkout(session["id"])
        subscriptions.append(world.make_subscription(session["customer"])["id"])
    for number in itertools.count():
        if len(outbox.events) >= EVENTS:
            return
        if number % 10 == 0:
            world.advance(seconds=1)
        world.status(chance.choice(subscriptions), chance.choice(STATUSES))


@contextmanager
def killing_workers(handler: Handler, chance: random.Random) -> Iterator[list[int]]:
    """Again and again a worker dies by -9; the service replaces it."""
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while len(killed) < KILLS and not done.wait(chance.uniform(0.2, 0.7)):
            victim = chance.choice(handler.workers())
            if victim.pid != handler.process.pid:
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join(30)


def test_two_thousand_events_survive_repetition_disorder_and_killed_workers(
    world: World, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_DATABASE_URL", database_url)
    chance = random.Random(20)
    much_happens(world, chance)
    world.sandbox.faults = Faults.parse("webhook_duplicates=0.6,webhook_delay=6")
    with running_handler(tmp_path, database_url, workers=3) as handler:
        connect(world, handler)
        with killing_workers(handler, chance) as killed:
            eventually(lambda: world.sandbox.webhooks.idle, 120, "all is delivered")
        assert len(killed) >= 5
        answers = dict(world.sandbox.webhooks.answers)
    assert answers["200"] > EVENTS * 1.5
    assert set(answers) <= {"200", "error"}, "a dying worker answers nothing, never something else"
    message = {event["id"]: event for event in world.sandbox.account.outbox.events}
    assert world.sandbox.webhooks.delivered == set(message)
    engine = make_engine(database_url)
    with engine.begin() as connection:
        stored = connection.execute(select(stripe_events.c.id, stripe_events.c.type)).all()
        redelivered = connection.scalar(select(func.sum(stripe_events.c.redeliveries))) or 0
    engine.dispose()
    assert sorted(row.id for row in stored) == sorted(message)
    # Every 200 was a row or a redelivery; a commit whose answer was lost is one more.
    assert answers["200"] <= len(stored) + redelivered <= answers["200"] + answers.get("error", 0)
    context = world.context()
    applied = apply_events(context)
    assert (applied.postponed, applied.failed) == ({}, {})
    customers = {s["customer"]: s for s in world.sandbox.billing.subscriptions.values()}
    known = context.customers.subscriptions_of(set(customers))
    assert {c: [s["status"] for s in found] for c, found in known.items()} == {
        customer: [subscription["status"]] for customer, subscription in customers.items()
    }
    checkouts = world.sandbox.billing.checkouts.values()
    assert context.customers.mapping() == {
        c["client_reference_id"]: c["customer"] for c in checkouts
    }


@contextmanager
def frozen_postgres(url: str) -> Iterator[None]:
    """The database server and all its processes stand still."""
    folder = url.split("host=")[1]
    postmaster = psutil.Process(int((Path(folder) / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@contextmanager
def locked_sqlite(url: str) -> Iterator[None]:
    """Another process holds the write lock and does not let go."""
    engine = make_engine(url)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield
    engine.dispose()


@pytest.fixture
def own_postgres() -> Iterator[Any]:
    """A PostgreSQL server of one's own, to be stopped."""
    with postgres_folder() as folder:
        server = start_postgres(folder)
        yield server
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def stoppable(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[str], Any]]:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/events.db", locked_sqlite
    return address(request.getfixturevalue("own_postgres")), frozen_postgres


def test_while_the_database_stands_still_stripe_is_asked_to_deliver_again(
    world: World, stoppable: tuple[str, Callable[[str], Any]], tmp_path: Path
) -> None:
    url, stopped = stoppable
    world.make_meters()
    with running_handler(tmp_path, url, workers=2) as handler:
        connect(world, handler, connections=6)
        for n in range(20):
            world.emit("customer.subscription.updated", {"id": f"sub_{n}"})
        eventually(lambda: world.sandbox.webhooks.idle, 30, "the first twenty are delivered")
        with stopped(url):
            for n in range(20, 60):
                world.emit("customer.subscription.updated", {"id": f"sub_{n}"})
            eventually(lambda: world.sandbox.webhooks.answers["503"] >= 6, 40, "503s")
            if url.startswith("postgresql"):
                assert handler.ask("/readyz")[0] == 503
            assert handler.ask("/healthz")[0] == 200
            taken = len(world.sandbox.webhooks.delivered)
        eventually(lambda: world.sandbox.webhooks.idle, 90, "everything arrives")
    assert taken == 20
    assert set(world.sandbox.webhooks.answers) == {"200", "503"}
    engine = make_engine(url)
    with engine.begin() as connection:
        stored = connection.scalar(select(func.count()).select_from(stripe_events))
    engine.dispose()
    assert stored == 60 == len(world.sandbox.webhooks.delivered)


def test_a_database_that_went_away_and_came_back_is_found_again(
    own_postgres: Any, tmp_path: Path
) -> None:
    with running_handler(tmp_path, address(own_postgres)) as handler:
        assert handler.post(event_body("evt_1"))[0] == 200
        own_postgres.cleanup()
        began = time.monotonic()
        status, answer = handler.post(event_body("evt_2"))
        assert (status, answer["error"]) == (503, "database")
        assert time.monotonic() - began < 12
        assert handler.ask("/readyz")[0] == 503
        assert b"stripe_webhook_refused_total" in handler.ask("/metrics")[1]
        server = start_postgres(own_postgres.pgdata)
        try:
            eventually(lambda: handler.post(event_body("evt_2"))[0] == 200, 20, "it is stored")
            assert handler.post(event_body("evt_1"))[1] == {"status": "known"}
        finally:
            server.cleanup()
