"""The ledger as a place: transactions to read in, to write in, to plan in, and to deliver under.

Functions of the other modules take the transaction that they work in, so that a caller can join
several of them into one. `Ledger.read` and `Ledger.write` run a single function in its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from billing_pipeline.database import writing
from billing_pipeline.ledger.locks import PLANNING, WAIT_SECONDS, delivery_lock, lock_until_commit

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Writer:
    """A transaction that changes the ledger. `run` names who acts; it is kept with each change."""

    connection: Connection
    run: str


class Ledger:
    """The ledger in one database. `run` names who acts."""

    def __init__(self, engine: Engine, run: str) -> None:
        self.engine = engine
        self.run = run
        self.delivery_wait_seconds = WAIT_SECONDS

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction to read in."""
        return self.engine.begin()

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """A transaction to write in, committed at the end."""
        with writing(self.engine) as connection:
            yield Writer(connection, self.run)

    @contextmanager
    def planning(self) -> Iterator[Writer]:
        """A transaction in which no other process plans. Read usage inside it, not before."""
        with self.writing() as writer:
            lock_until_commit(writer.connection, PLANNING)
            yield writer

    def delivering(self) -> AbstractContextManager[Callable[[], None]]:
        """The right to deliver, held by one process at a time; see `locks`."""
        return delivery_lock(self.engine, self.delivery_wait_seconds)

    def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a function reads, in a transaction of its own."""
        with self.reading() as connection:
            return function(connection, *args, **kwargs)

    def write(
        self, function: Callable[Concatenate[Writer, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that writes, in a transaction of its own."""
        with self.writing() as writer:
            return function(writer, *args, **kwargs)
