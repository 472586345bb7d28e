"""Writing a plan: its events as `planned`, its holds, and the holds that are gone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, update

from billing_pipeline.ledger.events import change, close_refusals, remember, supersede
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.rows import cell_columns, cell_of, is_cell
from billing_pipeline.ledger.tables import holds as holds_table
from billing_pipeline.ledger.tables import meter_events
from billing_pipeline.rules.holds import Hold
from billing_pipeline.rules.model import Cell, MeterEvent, State
from billing_pipeline.rules.planning import DayPlan


def write_plan(
    writer: Writer,
    plan: DayPlan,
    covers: Callable[[Cell], bool],
    snapshot_id: str | None,
    now: datetime,
) -> bool:
    """Write a day's plan. Returns whether it is whole: nothing has to be planned again after it.

    `covers` tells which cells were planned; the holds of other cells stay as they are.
    """
    too_late = supersede(writer, plan.usage_day, plan.superseded, now)
    close_refusals(writer, plan.usage_day, plan.no_longer_owed, now)
    _replace_holds(writer, plan, lambda cell: covers(cell) and cell not in too_late, now)
    events = [event for event in plan.events if event.cell not in too_late]
    if events:
        writer.connection.execute(
            insert(meter_events), [_planned_row(writer, e, snapshot_id, now) for e in events]
        )
    written = [change(e.cell, e.revision, None, State.PLANNED, f"value {e.value}") for e in events]
    remember(writer, written, now)
    return plan.is_whole and not too_late


def _planned_row(
    writer: Writer, event: MeterEvent, snapshot_id: str | None, now: datetime
) -> dict[str, Any]:
    start, end = event.segment or (None, None)
    return {
        **cell_columns(event.cell),
        "revision": event.revision,
        "identifier": event.identifier,
        "customer": event.customer,
        "value": event.value,
        "target": event.target,
        "timestamp": event.timestamp,
        "segment_start": start,
        "segment_end": end,
        "snapshot_id": snapshot_id,
        "planned_at": now,
        "planned_by": writer.run,
        "state": State.PLANNED,
    }


def _replace_holds(
    writer: Writer, plan: DayPlan, covers: Callable[[Cell], bool], now: datetime
) -> None:
    connection = writer.connection
    rows = connection.execute(select(holds_table).where(holds_table.c.usage_day == plan.usage_day))
    before = {(cell_of(row), row.start_at): row for row in rows if covers(cell_of(row))}
    waiting = {w.cell for w in plan.waiting}
    planned = {(hold.cell, hold.start): hold for hold in plan.holds if covers(hold.cell)}
    reported = {event.cell for event in plan.events}
    new, changes = [], []
    for cell, start in before.keys() - planned.keys():
        if cell in waiting:
            continue
        connection.execute(
            delete(holds_table).where(*is_cell(holds_table, cell), holds_table.c.start_at == start)
        )
        detail = "released" if cell in reported else "withdrawn: nothing to send now"
        changes.append(change(cell, None, State.HELD, "released", detail))
    for (cell, start), hold in planned.items():
        earlier, row = before.get((cell, start)), _hold_row(hold)
        if earlier is None:
            new.append({**cell_columns(cell), "start_at": start, "since": now, **row})
        elif any(earlier._mapping[name] != value for name, value in row.items()):
            connection.execute(
                update(holds_table)
                .where(*is_cell(holds_table, cell), holds_table.c.start_at == start)
                .values(row)
            )
        else:
            continue
        was = None if earlier is None else State.HELD
        detail = f"{hold.reason}: value {hold.value}"
        changes.append(change(cell, None, was, State.HELD, detail))
    if new:
        connection.execute(insert(holds_table), new)
    remember(writer, changes, now)


def _hold_row(hold: Hold) -> dict[str, Any]:
    return {
        "value": hold.value,
        "target": hold.target,
        "difference": hold.difference,
        "reason": hold.reason,
    }
