"""`billing explain`: a usage day or a billing period, from the bill down to the files."""

from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from billing_pipeline.cli.context import open_context
from billing_pipeline.cli.options import Json, a_day
from billing_pipeline.cli.output import Document, answer, progress, table

MARKS = {True: ("✓ ", "green"), False: ("✗ ", "bold red"), None: ("· ", "dim")}
SHOWN_SENSORS = 50
SHOWN_DUPLICATES = 10
SENSOR_COLUMNS = ("sensor_id", "readings", "first_at", "last_at", "exact_duplicates",
                  "conflicting_duplicates")  # fmt: skip
MIDNIGHT = "T00:00:00+00:00"


def explain(
    organization: Annotated[str, typer.Option(help="Organization id, exactly as in the readings.")],
    day: Annotated[
        date | None, typer.Option(parser=a_day, metavar="DAY", help="UTC usage day.")
    ] = None,
    period: Annotated[
        str | None,
        typer.Option(help="Billing period: YYYY-MM, a day inside it, or an invoice id (in_…)."),
    ] = None,
    meter: Annotated[str | None, typer.Option(help="Only the meter with this event name.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write the explanation to this HTML file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain a usage day or a billing period, from the bill down to the files.

    Checks every link on the way. Exits with 1 if a link is broken.
    """
    from billing_pipeline.operations.explain.day import explain_day
    from billing_pipeline.operations.explain.page import write_page
    from billing_pipeline.operations.explain.period import explain_period

    context = open_context()
    names = [spec.event_name for spec in context.settings.billing_meters]
    if meter is not None and meter not in names:
        raise typer.BadParameter(f"no meter has the name {meter!r}; use one of {', '.join(names)}")
    meters = [meter] if meter else names
    if day is not None and period is None:
        document = explain_day(context, organization, day, meters)
    elif day is None and period is not None:
        with progress() as watch:
            document = explain_period(context, organization, period, meters, progress=watch)
    else:
        raise typer.BadParameter("name either a --day or a --period")
    if html is not None:
        write_page(html, document, f"{context.clock():%Y-%m-%d %H:%M} UTC")
        document["page"] = str(html)
    answer(as_json, document, _parts(document), needs_person=document["checked"]["broken"])


def _parts(document: Document) -> Iterator[RenderableType]:
    if "lines" in document:
        yield _period_tree(document)
    else:
        yield _day_tree(document)
        if document["sensors"]:
            yield table(document["sensors"][:SHOWN_SENSORS], *SENSOR_COLUMNS)
    checked = document["checked"]
    message = f"{checked['hold']} links hold, {checked['broken']} are broken."
    yield Text(message, "bold red" if checked["broken"] else "green")


def _period_tree(document: Document) -> Tree:
    from billing_pipeline.operations.explain.page import headline

    tree = _tree(document, document["period"])
    for line in document["lines"]:
        branch = tree.add(Text(headline(line), "bold"))
        invoice = "no billing period of a subscription"
        if line["status"] != "none":
            invoice = f"subscription {line['subscription']}, invoice {line['invoice'] or '(none)'}"
        branch.add(f"period {line['period_start']} to {line['period_end']}, {invoice}")
        _add_links(branch, line["links"])
        for segment in line["days"]:
            branch.add(_segment_line(segment))
    days = tree.add(Text("day by day", "bold"))
    for day in document["days"]:
        days.add(_day_tree(day))
    for problem in document["problems"]:
        tree.add(Text(problem, "red"))
    return tree


def _segment_line(segment: Document) -> str:
    start, end = segment["from"], segment["to"]
    is_whole = start.endswith(MIDNIGHT) and end.endswith(MIDNIGHT)
    when = segment["day"] + ("" if is_whole else f" from {start[11:19]} to {end[11:19]}")
    why = f" ({'; '.join(segment['causes'])})" if segment["causes"] else ""
    return f"{when}: {segment['readings']} read, {segment['ledger']} reported{why}"


def _day_tree(document: Document) -> Tree:
    tree = _tree(document, document["day"])
    for meter in document["meters"]:
        branch = tree.add(Text(meter["meter"], "bold"))
        for check in meter["verifications"]:
            branch.add(
                f"Stripe's summary: {check['reported']}, ledger: {check['expected']} "
                f"({check['outcome']}, {check['checked_at']})"
            )
        for event in meter["events"]:
            _add_event(branch, event)
        for hold in meter["holds"]:
            segment = f" from {hold['segment_from']}" if hold["segment_from"] else ""
            branch.add(f"on hold{segment}: {hold['value']}, {hold['explanation']}")
        if not meter["events"] and not meter["holds"]:
            branch.add("nothing was reported")
    _add_snapshot(tree, document)
    _add_links(tree, document["links"])
    return tree


def _tree(document: Document, when: str) -> Tree:
    customer = document["customer"] or "(none known)"
    return Tree(f"{document['organization_id']}, {when}, customer {customer}")


def _add_event(branch: Tree, event: Document) -> None:
    leaf = branch.add(
        f"revision {event['revision']}: {event['value']} (target {event['target']}), "
        f"{event['state']}, request {event['request_id'] or '(none)'}"
    )
    leaf.add(f"identifier {event['identifier']}, timestamp {event['timestamp']}")
    leaf.add(f"snapshot {event['snapshot_id']}, planned {event['planned_at']}")
    if event["who"]:
        reason = f": {event['reason']}" if event["reason"] else ""
        leaf.add(f"run {event['planned_by']} by {event['who']}{reason}")
    if event["error_message"]:
        leaf.add(f"{event['error_code'] or ''} {event['error_message']}")


def _add_snapshot(tree: Tree, document: Document) -> None:
    snapshot, repeated = document["snapshot"], document["duplicates"]
    if snapshot is None:
        tree.add("no usage snapshot of this day")
        return
    branch = tree.add(
        f"snapshot {snapshot['snapshot_id']}: {snapshot['active_sensors']} active sensors, "
        f"{snapshot['reading_volume']} readings, {snapshot['exact_duplicates']} exact and "
        f"{snapshot['conflicting_duplicates']} conflicting duplicates removed"
    )
    for reason, rows in snapshot["quarantined"].items():
        branch.add(f"quarantined on this day, all organizations: {rows} rows, {reason}")
    for one in repeated[:SHOWN_DUPLICATES]:
        branch.add(
            f"sensor {one['sensor_id']} at {one['recorded_at']}: {one['rows']} rows with "
            f"{one['distinct_values']} different values are one reading"
        )
    if len(repeated) > SHOWN_DUPLICATES:
        branch.add(f"… and {len(repeated) - SHOWN_DUPLICATES} more such readings")


def _add_links(tree: Tree, links: Iterable[Document]) -> None:
    for link in links:
        detail = f" ({link['detail']})" if link["detail"] else ""
        tree.add(Text.assemble(MARKS[link["holds"]], link["what"] + detail))
