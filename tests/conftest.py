"""Fixtures shared by all tests: both databases, and a world around a sandbox."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from billing_pipeline.database import open_database
from billing_pipeline.sandbox.server import make_sandbox, running
from tests.closed_period import close_period
from tests.postgres import address, postgres_folder, start_postgres
from tests.support import World, new_database

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the developer's settings, and none writes into the repository."""
    for name in list(os.environ):
        if name.startswith(("BILLING_", "STRIPE_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in tests of this process grows to a fifth of a second, not to eight."""
    monkeypatch.setattr("billing_pipeline.stripe_api.retrying.LONGEST_DELAY", 0.2)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real PostgreSQL server; yields the URL of its maintenance database."""
    with postgres_folder() as folder:
        server = start_postgres(folder)
        yield address(server)
        server.cleanup()


@pytest.fixture(scope="session")
def spark() -> str:
    """Where a real Spark counts: a Java process beside the tests, started when first used."""
    if shutil.which("java") is None:
        pytest.fail("Spark needs Java 17 or newer: apt-get install openjdk-17-jre-headless")
    return "local[2]"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    maintenance = str(request.getfixturevalue("postgres"))
    return new_database(maintenance, f"test_{os.getpid()}_{next(_numbers)}")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine with the schema in place, on each kind of database."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A sandbox that serves, with readings, snapshots and a SQLite ledger in a folder."""
    sandbox = make_sandbox()
    with running(sandbox) as base:
        world = World(tmp_path, sandbox, base)
        for name, value in world.environment.items():
            monkeypatch.setenv(name, value)
        yield world
        world.close()


@pytest.fixture
def closed(world: World) -> World:
    """A world in which a billing period is over and invoiced."""
    return close_period(world)
