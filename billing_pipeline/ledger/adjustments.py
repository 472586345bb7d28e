"""Adjustments that people decided, and their entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from billing_pipeline.ledger.events import change, remember
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.marks import look_again
from billing_pipeline.ledger.rows import cell_columns, cell_of, is_cell
from billing_pipeline.ledger.tables import adjustment_entries, adjustments, holds
from billing_pipeline.rules.adjustments import Entry
from billing_pipeline.rules.model import Cell, State


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A decision: an amount of a closed cell, reported in the current period or written off."""

    id: str
    cell: Cell
    at: int
    """Unix seconds, in the segment that it is about."""
    amount: int
    hold_reason: str
    """Why it could not be reported where it belongs."""
    approved: bool
    reason: str
    run: str
    decided_at: datetime
    entries: tuple[Entry, ...] = ()
    """Where an approved one is reported."""

    def as_json(self) -> dict[str, Any]:
        """As `billing adjustments … --json` prints it."""
        return {
            "id": self.id,
            "day": self.cell.usage_day.isoformat(),
            "organization_id": self.cell.organization_id,
            "meter": self.cell.event_name,
            "amount": self.amount,
            "hold_reason": self.hold_reason,
            "decision": "approved" if self.approved else "dismissed",
            "reason": self.reason,
            "run": self.run,
            "decided_at": self.decided_at.isoformat(),
            "reported_in": [
                {"day": entry.cell.usage_day.isoformat(), "amount": entry.amount}
                for entry in self.entries
            ],
        }


def adjustment_entries_of(
    connection: Connection, days: Sequence[date]
) -> dict[date, dict[Cell, list[Entry]]]:
    """What adjustments add to the cells of these days."""
    found: dict[date, dict[Cell, list[Entry]]] = {day: defaultdict(list) for day in days}
    columns = adjustment_entries.c
    for row in connection.execute(
        select(adjustment_entries).where(columns.usage_day.in_(days)).order_by(columns.id)
    ):
        entry = _entry(row)
        found[row.usage_day][entry.cell].append(entry)
    return found


def decisions_about(connection: Connection, cell: Cell, at: int) -> int:
    """How many decisions there are about this segment of a cell."""
    return sum(
        (each.cell, each.at) == (cell, at) for each in decided_adjustments(connection, cell=cell)
    )


def decided_adjustments(
    connection: Connection, *, id: str | None = None, cell: Cell | None = None
) -> list[Adjustment]:
    """The decisions (all, one, or those about a cell), the oldest first."""
    columns = adjustments.c
    query = select(adjustments).order_by(columns.decided_at, columns.id)
    if id is not None:
        query = query.where(columns.id == id)
    if cell is not None:
        query = query.where(*is_cell(adjustments, cell))
    rows = connection.execute(query).all()
    entries: dict[str, list[Entry]] = defaultdict(list)
    for row in connection.execute(
        select(adjustment_entries)
        .where(
            adjustment_entries.c.adjustment_id.in_([row.id for row in rows]),
            adjustment_entries.c.taken_out.is_(False),
        )
        .order_by(adjustment_entries.c.id)
    ):
        entries[row.adjustment_id].append(_entry(row))
    return [
        Adjustment(
            row.id,
            cell_of(row),
            row.at,
            row.amount,
            row.hold_reason,
            row.approved,
            row.reason,
            row.run,
            row.decided_at,
            tuple(entries[row.id]),
        )
        for row in rows
    ]


def write_adjustment(writer: Writer, adjustment: Adjustment, hold_start: int) -> None:
    """Write a decision.

    The closed cell's hold (that of the segment from `hold_start`) ends. The days in which an
    approved amount is reported are planned again.
    """
    cell, connection = adjustment.cell, writer.connection
    connection.execute(
        insert(adjustments).values(
            id=adjustment.id,
            **cell_columns(cell),
            at=adjustment.at,
            amount=adjustment.amount,
            hold_reason=adjustment.hold_reason,
            approved=adjustment.approved,
            reason=adjustment.reason,
            run=writer.run,
            decided_at=adjustment.decided_at,
        )
    )
    out = Entry(cell, adjustment.at, -adjustment.amount)
    connection.execute(
        insert(adjustment_entries),
        [
            {
                **cell_columns(entry.cell),
                "adjustment_id": adjustment.id,
                "at": entry.at,
                "amount": entry.amount,
                "taken_out": entry is out,
            }
            for entry in (out, *adjustment.entries)
        ],
    )
    connection.execute(delete(holds).where(*is_cell(holds, cell), holds.c.start_at == hold_start))
    decision = "approved" if adjustment.approved else "dismissed"
    detail = f"{adjustment.id}: {adjustment.amount}, {adjustment.reason}"
    remember(writer, [change(cell, None, State.HELD, decision, detail)], adjustment.decided_at)
    look_again(writer, {cell.usage_day, *(entry.cell.usage_day for entry in adjustment.entries)})


def _entry(row: Any) -> Entry:
    return Entry(cell_of(row), row.at, row.amount)
