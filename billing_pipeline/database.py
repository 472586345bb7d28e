"""One SQL database under the ledger, the customers and Stripe's events.

SQLite (WAL) by default, PostgreSQL in production; the same code and tests on both. The webhook
handler shares it and may be deployed without the pipeline: how it is opened is said there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, Integer, MetaData, Table, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from billing_pipeline.errors import ConfigurationError
from webhook_handler.database import DatabaseUnusable, UtcDateTime, make_engine, migrate, writing

__all__ = ["BigInt", "UtcDateTime", "metadata", "open_database", "upsert", "upsert_all", "writing"]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

BigInt = BigInteger().with_variant(Integer, "sqlite")
"""64 bits on both; SQLite counts up by itself only on a column called INTEGER."""

MIGRATIONS = "billing_pipeline:ledger/migrations"


def open_database(url: str) -> Engine:
    """An engine for `url` with all schemas brought up to date.

    Raises ConfigurationError when the database cannot be reached or understood. The message
    never carries the password.
    """
    try:
        engine = make_engine(url)
    except DatabaseUnusable as error:
        raise ConfigurationError(str(error)) from None
    try:
        migrate(engine, MIGRATIONS, "alembic_version")
        migrate(engine)  # the event records, also where no handler has ever run
    except DBAPIError as error:
        shown = make_url(url).render_as_string(hide_password=True)
        raise ConfigurationError(f"the database {shown} cannot be used: {error.orig}") from None
    return engine


def upsert(connection: Connection, table: Table, key: dict[str, Any], row: dict[str, Any]) -> None:
    """Insert a row, or update the one with this primary key; safe beside other processes."""
    upsert_all(connection, table, list(key), [{**key, **row}])


def upsert_all(
    connection: Connection, table: Table, key: Sequence[str], rows: Sequence[dict[str, Any]]
) -> None:
    """The same for any number of rows with the same columns, `key` among them."""
    if not rows:
        return
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table)
    replaced = {name: statement.excluded[name] for name in rows[0] if name not in key}
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_=replaced), rows
    )
