"""One SQL database under the ledger and the customers: engine, schema metadata, migrations.

SQLite (WAL) by default, PostgreSQL in production; the same code and tests on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Integer,
    MetaData,
    Table,
    TypeDecorator,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError

from billing_pipeline.settings import ConfigurationError

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

BigInt = BigInteger().with_variant(Integer, "sqlite")
"""64 bits on both; SQLite counts up by itself only on a column called INTEGER."""

LOCK_TIMEOUT_SECONDS = 60
"""SQLite's write lock is unfair: waits of 12 s were measured under load."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime, also on SQLite, which keeps no zone. Naive values are refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database, in UTC. Raises ValueError for a naive datetime."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive datetime has no place in the ledger: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database, aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def open_database(url: str) -> Engine:
    """An engine for `url` with the schema brought up to date.

    Raises ConfigurationError when the database cannot be reached or understood. The message
    never carries the password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigurationError("BILLING_DATABASE_URL is not a database URL") from None
    if parsed.get_backend_name() == "sqlite":
        engine = _sqlite(url, parsed.database)
    elif parsed.drivername == "postgresql+psycopg":
        engine = create_engine(url, pool_pre_ping=True)
    else:
        raise ConfigurationError(
            "BILLING_DATABASE_URL must start with sqlite:/// or postgresql+psycopg://, "
            f"not {parsed.drivername}://"
        )
    try:
        migrate(engine)
    except DBAPIError as error:
        shown = parsed.render_as_string(hide_password=True)
        raise ConfigurationError(f"the database {shown} cannot be used: {error.orig}") from None
    return engine


def _sqlite(url: str, path: str | None) -> Engine:
    if path and path != ":memory:":
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the folder of the database {path} cannot be made: {error}"
            ) from None
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def _pragmas(dbapi: Any, _record: Any) -> None:
        # SQLAlchemy, not the driver, decides where a transaction begins (see `writing`).
        dbapi.isolation_level = None
        dbapi.execute("PRAGMA journal_mode = WAL")
        dbapi.execute("PRAGMA synchronous = FULL")  # money is written here
        dbapi.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A read that later wants to write would fail when another wrote between: lock at once.
        immediate = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes, committed at the end, rolled back on any exception."""
    with (
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
    ):
        yield connection


def upsert(connection: Connection, table: Table, key: dict[str, Any], row: dict[str, Any]) -> None:
    """Insert a row, or update the one with this primary key; safe beside other processes."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).values(**key, **row)
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=row))


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision; safe when several processes start at once."""
    config = Config()
    config.set_main_option("script_location", "billing_pipeline:ledger/migrations")
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7205131)")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
