"""Explain one organization's usage of one day, from Stripe's figure down to the files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from billing_pipeline.metering import Cell
from billing_pipeline.statement import Rooms
from billing_pipeline.usage import load_snapshot
from billing_pipeline.usage.activity import sensors_of


def explain_document(
    rooms: Rooms, organization: str, day: date, meters: Sequence[str]
) -> dict[str, Any]:
    """Everything known about the organization's day: snapshot, files, sensors, statements."""
    snapshot = load_snapshot(rooms.engine, rooms.snapshots, day)
    usage = None
    if snapshot is not None:
        usage = next((o for o in snapshot.organizations if o.organization_id == organization), None)
    stories = [rooms.inquiry.story(Cell(day, organization, meter)) for meter in meters]
    return {
        "organization_id": organization,
        "day": day.isoformat(),
        "customer": rooms.customers.mapping(rooms.settings.billing_customers_file).get(
            organization
        ),
        "meters": [
            {
                "meter": story.cell.event_name,
                "events": story.events,
                "held": story.held[0].as_json() if story.held else None,
                "held_parts": [held.as_json() for held in story.held],
                "verifications": story.verifications,
                "history": story.history,
            }
            for story in stories
        ],
        "snapshot": None
        if snapshot is None
        else {
            "snapshot_id": snapshot.snapshot_id,
            "active_sensors": usage.active_sensors if usage else 0,
            "reading_volume": usage.reading_volume if usage else 0,
            "exact_duplicates": usage.exact_duplicates if usage else 0,
            "conflicting_duplicates": usage.conflicting_duplicates if usage else 0,
            "files": [vars_of(file) for file in snapshot.counted.files],
            "rows_read": snapshot.counted.rows_read,
            "quarantined": snapshot.counted.quarantined,
        },
        "sensors": sensors_of(rooms.engine, rooms.snapshots, day, organization),
    }


def vars_of(file: Any) -> dict[str, Any]:
    """A slotted or plain dataclass as a dictionary."""
    return {name: getattr(file, name) for name in file.__dataclass_fields__}


def show_explanation(console: Console, document: dict[str, Any]) -> None:
    """Print it as a tree, from the bill down."""
    tree = Tree(
        f"{document['organization_id']} on {document['day']}, "
        f"customer {document['customer'] or '(none known)'}"
    )
    for meter in document["meters"]:
        branch = tree.add(Text(meter["meter"], "bold"))
        for look in meter["verifications"]:
            branch.add(
                f"Stripe's summary: {look['reported']}, ledger: {look['expected']} "
                f"({look['outcome']}, {look['checked_at']})"
            )
        for event in meter["events"]:
            leaf = branch.add(
                f"revision {event['revision']}: {event['value']} (target {event['target']}), "
                f"{event['state']}, request {event['request_id'] or '(none)'}"
            )
            leaf.add(f"identifier {event['identifier']}, timestamp {event['timestamp']}")
            leaf.add(f"snapshot {event['snapshot_id']}, planned {event['planned_at']}")
            if event["error_message"]:
                leaf.add(f"{event['error_code'] or ''} {event['error_message']}")
        for held in meter["held_parts"]:
            part = f" (from {held['part_from']})" if held["part_from"] else ""
            branch.add(f"held{part}: {held['value']}, {held['explanation']}")
        if not meter["events"] and not meter["held"]:
            branch.add("nothing was stated")
    snapshot = document["snapshot"]
    if snapshot is None:
        tree.add("no usage snapshot of this day")
    else:
        branch = tree.add(
            f"snapshot {snapshot['snapshot_id']}: {snapshot['active_sensors']} active sensors, "
            f"{snapshot['reading_volume']} readings, {snapshot['exact_duplicates']} exact and "
            f"{snapshot['conflicting_duplicates']} conflicting duplicates removed"
        )
        for reason, rows in snapshot["quarantined"].items():
            branch.add(f"quarantined in the whole day: {rows} rows, {reason}")
        for file in snapshot["files"]:
            branch.add(f"{file['name']}: {file['rows']} rows, {file['size']} bytes, sha256 "
                       f"{file['sha256'][:16]}…")  # fmt: skip
    console.print(tree)
    if document["sensors"]:
        table = Table("sensor", "readings", "first", "last", "duplicates")
        for sensor in document["sensors"][:50]:
            table.add_row(
                sensor["sensor_id"],
                str(sensor["readings"]),
                str(sensor["first_at"]),
                str(sensor["last_at"]),
                str(sensor["exact_duplicates"] + sensor["conflicting_duplicates"]),
            )
        console.print(table)
