"""Decisions: who ran what and why, gate approvals, undone runs. Adjustments stand beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select, true

from billing_pipeline.database import upsert, upsert_all
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.marks import look_again
from billing_pipeline.ledger.rows import cell_columns, cell_of, row_as_json
from billing_pipeline.ledger.tables import gate_approvals, runs, undone_cells
from billing_pipeline.rules.model import Cell


def record_run(
    writer: Writer, who: str, reason: str, now: datetime, *, undoes: str | None = None
) -> None:
    """Record who runs this and why, and which run it undoes."""
    upsert(
        writer.connection,
        runs,
        {"run": writer.run},
        {"who": who, "reason": reason, "started_at": now, "undoes": undoes},
    )


def run_record(connection: Connection, run: str) -> dict[str, Any] | None:
    """Who ran it, why and when; None for a run that is not recorded."""
    row = connection.execute(select(runs).where(runs.c.run == run)).one_or_none()
    return row_as_json(dict(row._mapping)) if row else None


def mark_undone(
    writer: Writer, cells: Collection[Cell], snapshot_id: str, reason: str, now: datetime
) -> None:
    """Record that the reports about these cells from this snapshot were undone."""
    rows = [
        {
            **cell_columns(cell),
            "snapshot_id": snapshot_id,
            "reason": reason,
            "run": writer.run,
            "undone_at": now,
        }
        for cell in cells
    ]
    key = ["usage_day", "organization_id", "event_name"]
    upsert_all(writer.connection, undone_cells, key, rows)
    look_again(writer, {cell.usage_day for cell in cells})


def end_undone(writer: Writer, day: date, snapshot_id: str | None) -> None:
    """Forget the undone cells of a day whose snapshot is another one by now; None: all of them."""
    undone = undone_cells.c
    other = true() if snapshot_id is None else undone.snapshot_id != snapshot_id
    writer.connection.execute(delete(undone_cells).where(undone.usage_day == day, other))


def undone(connection: Connection, day: date, snapshot_id: str | None = None) -> dict[Cell, str]:
    """The undone cells of a day with the reason; with a snapshot, those that reported it."""
    query = select(undone_cells).where(undone_cells.c.usage_day == day)
    if snapshot_id is not None:
        query = query.where(undone_cells.c.snapshot_id == snapshot_id)
    return {cell_of(row): row.reason for row in connection.execute(query)}


def undone_counts(connection: Connection, snapshots: Mapping[date, str | None]) -> dict[date, int]:
    """How many cells of these days are undone while they have these snapshots."""
    columns = undone_cells.c
    rows = connection.execute(
        select(columns.usage_day, columns.snapshot_id, func.count())
        .where(columns.usage_day.in_(snapshots))
        .group_by(columns.usage_day, columns.snapshot_id)
    )
    return {day: number for day, snapshot, number in rows if snapshots[day] == snapshot}


def approvals(connection: Connection, which: Collection[date]) -> set[tuple[date, str]]:
    """(day, snapshot) of the counts of these days that people let through the gate."""
    columns = gate_approvals.c
    rows = connection.execute(
        select(columns.usage_day, columns.snapshot_id).where(columns.usage_day.in_(which))
    )
    return {(row.usage_day, row.snapshot_id) for row in rows}


def write_approval(writer: Writer, day: date, snapshot_id: str, reason: str, now: datetime) -> None:
    """Let the counts of a snapshot through the gate; the day is looked at again."""
    upsert(
        writer.connection,
        gate_approvals,
        {"usage_day": day, "snapshot_id": snapshot_id},
        {"reason": reason, "run": writer.run, "approved_at": now},
    )
    look_again(writer, [day])


def gate_approved(connection: Connection, day: date, snapshot_id: str) -> str | None:
    """The reason for which a person let these counts through; None if nobody did."""
    approvals = gate_approvals.c
    query = select(approvals.reason).where(
        approvals.usage_day == day, approvals.snapshot_id == snapshot_id
    )
    return connection.scalar(query)
