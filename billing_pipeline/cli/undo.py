"""`billing undo`: report again what Stripe had before a run."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import RenderableType

from billing_pipeline.cli import report
from billing_pipeline.cli.context import actor, open_context
from billing_pipeline.cli.options import Json, Reason
from billing_pipeline.cli.output import Document, answer, progress, table


def undo(
    run: Annotated[str, typer.Option(help="Id of the run, as `billing run` printed it.")],
    reason: Reason,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be reported, but send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Undo a run: report what Stripe had before it, as new revisions."""
    from billing_pipeline.ledger import queries
    from billing_pipeline.operations.undo import undo_run

    context = open_context(needs_key=True)
    with progress() as watch:
        undone = undo_run(context, run, actor(reason), dry_run=dry_run, progress=watch)
    events = context.ledger.read(queries.counts, undone.days)
    document = {
        "run": undone.run,
        "undone_by": context.ledger.run,
        "days": [day.isoformat() for day in undone.days],
        "reported": [line.as_json() for line in undone.lines],
        "unchanged": undone.unchanged,
        "sent": undone.reporting.sent,
        "stopped": undone.reporting.stopped,
        "events": events,
        "unresolved": report.unresolved(events),
    }
    wrong = any(document[name] for name in ("unchanged", "stopped", "unresolved"))
    answer(as_json, document, _parts(document), needs_person=wrong)


def _parts(document: Document) -> Iterator[RenderableType]:
    if document["reported"]:
        columns = ("day", "organization_id", "meter", "before", "target", "value")
        yield table(document["reported"], *columns)
    else:
        yield f"Nothing that {document['run']} reported is left to undo."
    yield from report.reported_parts(document)
