"""Marks on days that something new may concern. They say where to look, not what is found there."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

from sqlalchemy import update

from billing_pipeline.database import upsert_all
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.tables import days


def look_again(writer: Writer, which: Collection[date], *, only_planned: bool = False) -> None:
    """Have these days looked at, however old they are and whatever crashes before that.

    Recent days are looked at anyway. `only_planned`: leave out those that were never planned.
    """
    if only_planned:
        marked = update(days).where(days.c.usage_day.in_(which)).values(look_again=True)
        writer.connection.execute(marked)
        return
    rows = [{"usage_day": day, "look_again": True, "run": writer.run} for day in sorted(which)]
    upsert_all(writer.connection, days, ["usage_day"], rows)
