"""From rows of the ledger's tables to values."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row

from billing_pipeline.rules.model import Cell, Formula, Measure, Meter, MeterEvent

CHUNK = 500
"""Rows or ids per SQL statement, well below what either database takes as parameters."""


def cell_of(row: Row[Any]) -> Cell:
    """The cell that a row is about."""
    return Cell(row.usage_day, row.organization_id, row.event_name)


def cell_columns(cell: Cell) -> dict[str, Any]:
    """The columns that name a cell."""
    return {
        "usage_day": cell.usage_day,
        "organization_id": cell.organization_id,
        "event_name": cell.event_name,
    }


def is_cell(table: Any, cell: Cell) -> list[ColumnElement[bool]]:
    """Conditions that select the rows of a table that are about a cell."""
    return [
        table.c.usage_day == cell.usage_day,
        table.c.organization_id == cell.organization_id,
        table.c.event_name == cell.event_name,
    ]


def same_cell(one: Any, other: Any) -> list[ColumnElement[bool]]:
    """Conditions that join the rows of two tables that are about the same cell."""
    names = ("usage_day", "organization_id", "event_name")
    return [one.c[name] == other.c[name] for name in names]


def event_of(row: Row[Any]) -> MeterEvent:
    """The meter event of a row."""
    return MeterEvent(
        cell_of(row),
        row.revision,
        row.customer,
        row.value,
        row.target,
        row.timestamp,
        None if row.segment_start is None else (row.segment_start, row.segment_end),
    )


def meter_of(row: Row[Any], measure: Measure) -> Meter:
    """The meter of a row, fed by this measure."""
    return Meter(
        row.event_name,
        Formula(row.formula),
        measure,
        row.event_time_window,
        row.customer_key,
        row.value_key,
        row.meter_id,
        row.changed_at,
    )


def row_as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its dates and times as ISO 8601 text."""
    return {
        name: value.isoformat() if isinstance(value, (date, datetime)) else value
        for name, value in row.items()
    }
