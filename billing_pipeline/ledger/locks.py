"""Locks: only one process per ledger delivers, plans, leases reads or applies Stripe events.

Stripe's rate limit belongs to the account, and so does the rule of one request in flight per
customer and meter. With one deliverer at a time both are kept, and an event found in `sending` was
left there by a crash. The operating system (SQLite: a lock file) or the session (PostgreSQL: an
advisory lock) owns the lock: `kill -9` releases it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, text

DELIVERY, PLANNING, READS, APPLYING = range(7205132, 7205136)
"""Keys of PostgreSQL's advisory locks, one for each thing that one process does at a time."""

WAIT_SECONDS = 600.0
"""How long to wait for another deliverer before giving up; its events stay planned."""


class DeliveryBusy(Exception):
    """Another process delivers from this ledger and did not finish in time."""


@contextmanager
def delivery_lock(
    engine: Engine, wait_seconds: float = WAIT_SECONDS
) -> Iterator[Callable[[], None]]:
    """Hold the right to deliver; yields a function that raises if the right was lost.

    Raises DeliveryBusy after `wait_seconds`.
    """
    if engine.dialect.name == "sqlite":
        lock = FileLock(f"{engine.url.database}.delivery.lock")
        try:
            lock.acquire(timeout=wait_seconds, poll_interval=0.1)
        except Timeout:
            raise DeliveryBusy from None
        try:
            yield lambda: None  # a file lock cannot be lost while its process lives
        finally:
            lock.release()
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            _wait_for_advisory_lock(connection, wait_seconds)
            try:
                # A lost session has lost the lock: the ping then raises.
                yield lambda: connection.execute(text("SELECT 1")).close()
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": DELIVERY})


def lock_until_commit(connection: Connection, key: int) -> None:
    """Wait for an advisory lock that ends with this transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _wait_for_advisory_lock(connection: Connection, wait_seconds: float) -> None:
    give_up = time.monotonic() + wait_seconds
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": DELIVERY}):
        if time.monotonic() > give_up:
            raise DeliveryBusy
        time.sleep(0.1)
