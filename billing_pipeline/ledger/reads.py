"""How many of Stripe's summaries were read: all processes of a ledger share one budget."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Connection, func, select, update

from billing_pipeline.database import upsert
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.locks import READS, lock_until_commit
from billing_pipeline.ledger.tables import stripe_reads


def lease_reads(writer: Writer, day: date, number: int, limit: int) -> int:
    """Take up to `number` reads on this day, at most `limit` in its month; returns how many."""
    connection = writer.connection
    lock_until_commit(connection, READS)
    used = reads_used(connection, day.replace(day=1), day)
    taken = max(0, min(number, limit - used))
    if taken:
        today = reads_used(connection, day, day)
        upsert(connection, stripe_reads, {"day": day}, {"used": today + taken})
    return taken


def give_back_reads(writer: Writer, day: date, number: int) -> None:
    """Give back reads of this day that were not made."""
    writer.connection.execute(
        update(stripe_reads)
        .where(stripe_reads.c.day == day)
        .values(used=stripe_reads.c.used - number)
    )


def reads_used(connection: Connection, first: date, last: date) -> int:
    """Reads made or leased on these days."""
    query = select(func.sum(stripe_reads.c.used)).where(stripe_reads.c.day.between(first, last))
    return int(connection.scalar(query) or 0)
