"""Fixtures shared by all tests, and the tiers: which tests are pure, and so in `make check`."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import Engine

from billing_pipeline.database import open_database
from billing_pipeline.sandbox.server import make_sandbox, running
from tests.closed_period import close_period
from tests.postgres import address, postgres_folder, start_postgres
from tests.support import World, new_database

_numbers = itertools.count(1)

TESTS = Path(__file__).parent
PURE = (
    "rules",
    "sandbox/test_journal.py",
    "simulation/test_mutants.py",
    "stripe_api/test_answers.py",
    "usage/test_folders.py",
    "webhook_handler/test_signature.py",
    "test_house.py",
)
"""Folders and files whose tests need no database, network or process."""

NOT_PURE = {"world", "closed", "engine", "database_url", "postgres", "spark"}
"""Fixtures that a pure test must not ask for."""

BLOCKED: Sequence[tuple[Any, str]] = (
    (socket.socket, "connect"),
    (socket.socket, "bind"),
    (subprocess.Popen, "__init__"),
    (os, "fork"),
    (threading.Thread, "start"),
    (sqlite3, "connect"),
    (sqlite3.dbapi2, "connect"),
)
"""What fails in a pure test."""


def _is_pure(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / each) for each in PURE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing else for the pure tests: they are for the pauses between two thoughts."""
    others = collection_path.is_file() and not _is_pure(collection_path)
    return True if others and config.getoption("-m") == "pure" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the pure tests. One that asks for a database or a server is an error."""
    for item in items:
        if not _is_pure(item.path):
            continue
        item.add_marker("pure")
        if asked := NOT_PURE & set(getattr(item, "fixturenames", ())):
            raise pytest.UsageError(f"{item.nodeid} is among the pure tests, and asks for {asked}")


@pytest.fixture(autouse=True)
def _stays_pure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pure test that uses a network, a process, a thread, a database or Dagster fails."""
    if "pure" not in request.keywords:
        return

    def blocked(*_: object, **__: object) -> NoReturn:
        pytest.fail("this test is among the pure ones (PURE in tests/conftest.py)")

    for owner, name in BLOCKED:
        monkeypatch.setattr(owner, name, blocked)
    if "dagster" not in sys.modules:  # in a run of all tests, others have imported it
        monkeypatch.setitem(sys.modules, "dagster", None)  # importing it raises ImportError


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
    missing = ""
    if shutil.which("java") is None:
        missing = "Spark needs Java 17 or newer: apt-get install openjdk-17-jre-headless"
    elif importlib.util.find_spec("pyspark") is None:
        missing = "pyspark is not installed: `make test` installs it"
    if missing and os.environ.get("TESTS_MUST_NOT_SKIP"):  # as in CI
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
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
