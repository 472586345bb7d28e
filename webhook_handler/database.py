"""Opening the SQL database, its transactions and migrations.

The service and the pipeline share one database, SQLite (WAL) or PostgreSQL, and must open it in the
same way. The pipeline imports this module for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    Engine,
    TypeDecorator,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError

LOCK_TIMEOUT_SECONDS = 60.0
"""SQLite's write lock is unfair. Waits of 12 s were measured under load."""

MIGRATION_KEY = 7205131

EVENT_MIGRATIONS = "webhook_handler:migrations"
EVENT_VERSIONS = "stripe_events_version"
"""The table with the version of the event records' schema. The ledger has its own."""


class DatabaseUnusable(Exception):
    """The database URL is invalid or cannot be opened. The message contains no password."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime, also on SQLite, which stores no zone. Naive values are refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database, in UTC. Raises ValueError for a naive datetime."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a datetime without a time zone cannot be stored: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database, aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def make_engine(
    url: str,
    *,
    lock_timeout: float = LOCK_TIMEOUT_SECONDS,
    statement_timeout: float | None = None,
    pool_size: int = 5,
) -> Engine:
    """An engine for a SQLite or PostgreSQL URL. It does not connect yet.

    `lock_timeout` (seconds) limits SQLite's wait for its write lock, `statement_timeout` each SQL
    statement on PostgreSQL. Raises DatabaseUnusable.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseUnusable("BILLING_DATABASE_URL is not a database URL") from None
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(url, parsed.database, lock_timeout)
    if parsed.drivername == "postgresql+psycopg":
        limits: dict[str, Any] = {}
        if statement_timeout is not None:
            milliseconds = int(statement_timeout * 1000)
            limits = {
                "connect_timeout": max(2, int(statement_timeout)),
                "options": f"-c statement_timeout={milliseconds}",
            }
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=pool_size,
            pool_timeout=statement_timeout or 30,
            hide_parameters=True,
            connect_args=limits,
        )
    raise DatabaseUnusable(
        "BILLING_DATABASE_URL must start with sqlite:/// or postgresql+psycopg://, "
        f"not {parsed.drivername}://"
    )


def _sqlite(url: str, path: str | None, lock_timeout: float) -> Engine:
    if path and path != ":memory:":
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnusable(
                f"the folder of the database {path} cannot be created: {error}"
            ) from None
    engine = create_engine(url, connect_args={"timeout": lock_timeout}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _pragmas(dbapi: Any, _record: Any) -> None:
        # SQLAlchemy, not the driver, begins transactions (see `writing`).
        dbapi.isolation_level = None
        dbapi.execute("PRAGMA journal_mode = WAL")
        dbapi.execute("PRAGMA synchronous = FULL")  # money is written here
        dbapi.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Reading first and then writing fails if another transaction wrote in between. So a writing
        # transaction takes the lock at its start.
        immediate = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: committed at the end, rolled back after any exception."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def migrate(
    engine: Engine, location: str = EVENT_MIGRATIONS, versions: str = EVENT_VERSIONS
) -> None:
    """Upgrade a schema to its newest revision. Several processes may do it at once."""
    config = _config(location)
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_KEY})")
        config.attributes["connection"] = connection
        config.attributes["version_table"] = versions
        command.upgrade(config, "head")


def is_current(connection: Connection) -> bool:
    """Whether the event records have the newest schema."""
    context = MigrationContext.configure(connection, opts={"version_table": EVENT_VERSIONS})
    head = ScriptDirectory.from_config(_config(EVENT_MIGRATIONS)).get_current_head()
    return context.get_current_revision() == head


def _config(location: str) -> Config:
    config = Config()
    config.set_main_option("script_location", location)
    return config
