"""What people decided about usage that its own period no longer accepts: a book of double entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select

from billing_pipeline.ledger.ledger import reopen
from billing_pipeline.ledger.tables import (
    adjustment_entries,
    adjustments,
    held_usage,
    history,
)
from billing_pipeline.rules.adjustments import Entry
from billing_pipeline.rules.model import (
    Cell,
    State,
)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A decision: the amount of a closed cell's part that was carried into the current period or written off."""

    id: str
    cell: Cell
    at: int
    """In the part of the day that it is about (unix seconds)."""
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


class AdjustmentBook:
    """Decisions and their entries, in the ledger's database. `run` names who acts."""

    def __init__(self, engine: Engine, run: str) -> None:
        self._engine = engine
        self._run = run

    def adjustments(
        self, days: Sequence[date], connection: Connection | None = None
    ) -> dict[date, dict[Cell, list[Entry]]]:
        """What adjustments add to the cells of these days."""
        if connection is None:
            with self._engine.begin() as own:
                return self.adjustments(days, own)
        found: dict[date, dict[Cell, list[Entry]]] = {day: defaultdict(list) for day in days}
        columns = adjustment_entries.c
        for row in connection.execute(
            select(adjustment_entries).where(columns.usage_day.in_(days)).order_by(columns.id)
        ):
            entry = _entry(row)
            found[row.usage_day][entry.cell].append(entry)
        return found

    def number(self, cell: Cell, at: int, connection: Connection | None = None) -> int:
        """How many decisions there are about this part of a cell."""
        return sum(
            (each.cell, each.at) == (cell, at) for each in self.decided(cell=cell, of=connection)
        )

    def decided(
        self,
        *,
        id: str | None = None,
        cell: Cell | None = None,
        of: Connection | None = None,
    ) -> list[Adjustment]:
        """The decisions (all, one, or those about a cell), the oldest first."""
        if of is None:
            with self._engine.begin() as own:
                return self.decided(id=id, cell=cell, of=own)
        columns = adjustments.c
        query = select(adjustments).order_by(columns.decided_at, columns.id)
        if id is not None:
            query = query.where(columns.id == id)
        if cell is not None:
            query = query.where(
                columns.usage_day == cell.usage_day,
                columns.organization_id == cell.organization_id,
                columns.event_name == cell.event_name,
            )
        rows = of.execute(query).all()
        entries: dict[str, list[Entry]] = defaultdict(list)
        for row in of.execute(
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
                Cell(row.usage_day, row.organization_id, row.event_name),
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

    def write(self, connection: Connection, adjustment: Adjustment, held_start: int) -> None:
        """Write a decision down, in the caller's transaction.

        The closed cell's hold (that of the part from `held_start`) ends; the days in which an
        approved amount is to be reported are planned again.
        """
        cell = adjustment.cell
        connection.execute(
            insert(adjustments).values(
                id=adjustment.id,
                usage_day=cell.usage_day,
                organization_id=cell.organization_id,
                event_name=cell.event_name,
                at=adjustment.at,
                amount=adjustment.amount,
                hold_reason=adjustment.hold_reason,
                approved=adjustment.approved,
                reason=adjustment.reason,
                run=self._run,
                decided_at=adjustment.decided_at,
            )
        )
        out = Entry(cell, adjustment.at, -adjustment.amount)
        connection.execute(
            insert(adjustment_entries),
            [
                {
                    "adjustment_id": adjustment.id,
                    "usage_day": entry.cell.usage_day,
                    "organization_id": entry.cell.organization_id,
                    "event_name": entry.cell.event_name,
                    "at": entry.at,
                    "amount": entry.amount,
                    "taken_out": entry is out,
                }
                for entry in (out, *adjustment.entries)
            ],
        )
        connection.execute(
            delete(held_usage).where(
                held_usage.c.usage_day == cell.usage_day,
                held_usage.c.organization_id == cell.organization_id,
                held_usage.c.event_name == cell.event_name,
                held_usage.c.start_at == held_start,
            )
        )
        decision = "approved" if adjustment.approved else "dismissed"
        connection.execute(
            insert(history).values(
                at=adjustment.decided_at,
                run=self._run,
                usage_day=cell.usage_day,
                organization_id=cell.organization_id,
                event_name=cell.event_name,
                from_state=State.HELD,
                to_state=decision,
                detail=f"{adjustment.id}: {adjustment.amount}, {adjustment.reason}",
            )
        )
        reported_on = {entry.cell.usage_day for entry in adjustment.entries}
        reopen(connection, reported_on, self._run)


def _entry(row: Any) -> Entry:
    cell = Cell(row.usage_day, row.organization_id, row.event_name)
    return Entry(cell, row.at, row.amount)
