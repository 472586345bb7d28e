"""An explanation as a tree in a terminal, each link marked as it holds or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

MARKS = {True: ("✓ ", "green"), False: ("✗ ", "bold red"), None: ("· ", "dim")}
SHOWN_SENSORS = 50
SHOWN_DUPLICATES = 10


def show_explanation(console: Console, document: dict[str, Any]) -> None:
    """Print an explained day or period, from the bill down."""
    if "lines" in document:
        console.print(_period(document))
    else:
        console.print(_day(document))
        if document["sensors"]:
            console.print(_sensors(document))
    checked = document["checked"]
    message = f"{checked['hold']} links checked and right, {checked['broken']} broken"
    console.print(Text(f"{message}.", "bold red" if checked["broken"] else "green"))


def _period(document: dict[str, Any]) -> Tree:
    tree = Tree(
        f"{document['organization_id']}, {document['period']}, "
        f"customer {document['customer'] or '(none known)'}"
    )
    for line in document["lines"]:
        branch = tree.add(Text(headline(line), "bold"))
        branch.add(f"period {line['period_start']} to {line['period_end']}, {_invoice(line)}")
        _add_links(branch, line["links"])
        for segment in line["days"]:
            whole = segment["from"].endswith("T00:00:00+00:00") and segment["to"].endswith(
                "T00:00:00+00:00"
            )
            span = "" if whole else f" from {segment['from'][11:19]} to {segment['to'][11:19]}"
            why = f" ({'; '.join(segment['causes'])})" if segment["causes"] else ""
            branch.add(
                f"{segment['day']}{span}: {segment['readings']} read, {segment['ledger']} reported{why}"
            )
    days = tree.add(Text("day by day", "bold"))
    for day in document["days"]:
        days.add(_day(day))
    for problem in document["problems"]:
        tree.add(Text(problem, "red"))
    return tree


def headline(line: dict[str, Any]) -> str:
    """A line of a period in words."""
    if line["invoiced"] is not None and line["invoice"]:
        return f"{line['meter']}: the invoice bills {line['invoiced']}"
    return f"{line['meter']}: {line['ledger']} reported so far"


def _invoice(line: dict[str, Any]) -> str:
    if line["status"] == "none":
        return "no billing period of a subscription"
    return f"subscription {line['subscription']}, invoice {line['invoice'] or '(none yet)'}"


def _day(document: dict[str, Any]) -> Tree:
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
            _add_event(branch, event)
        for held in meter["holds"]:
            segment = f" (from {held['segment_from']})" if held["segment_from"] else ""
            branch.add(f"held{segment}: {held['value']}, {held['explanation']}")
        if not meter["events"] and not meter["held"]:
            branch.add("nothing was reported")
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
        for twice in document["duplicates"][:SHOWN_DUPLICATES]:
            branch.add(
                f"sensor {twice['sensor_id']} at {twice['recorded_at']}: {twice['rows']} rows, "
                f"{twice['distinct_values']} values, one reading"
            )
        if len(document["duplicates"]) > SHOWN_DUPLICATES:
            branch.add(f"… and {len(document['duplicates']) - SHOWN_DUPLICATES} more such readings")
    _add_links(tree, document["links"])
    return tree


def _add_event(branch: Tree, event: dict[str, Any]) -> None:
    leaf = branch.add(
        f"revision {event['revision']}: {event['value']} (target {event['target']}), "
        f"{event['state']}, request {event['request_id'] or '(none)'}"
    )
    leaf.add(f"identifier {event['identifier']}, timestamp {event['timestamp']}")
    leaf.add(f"snapshot {event['snapshot_id']}, planned {event['planned_at']}")
    if event["who"]:
        why = f": {event['reason']}" if event["reason"] else ""
        leaf.add(f"run {event['planned_by']} by {event['who']}{why}")
    if event["error_message"]:
        leaf.add(f"{event['error_code'] or ''} {event['error_message']}")


def _add_links(tree: Tree, links: Iterable[dict[str, Any]]) -> None:
    for link in links:
        message = f" ({link['detail']})" if link["detail"] else ""
        tree.add(Text.assemble(MARKS[link["holds"]], link["what"] + message))


def _sensors(document: dict[str, Any]) -> Table:
    table = Table("sensor", "readings", "first", "last", "duplicates")
    for sensor in document["sensors"][:SHOWN_SENSORS]:
        table.add_row(
            sensor["sensor_id"],
            str(sensor["readings"]),
            str(sensor["first_at"]),
            str(sensor["last_at"]),
            str(sensor["exact_duplicates"] + sensor["conflicting_duplicates"]),
        )
    return table
