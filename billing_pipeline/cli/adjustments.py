"""`billing adjustments`: usage that its own billing period no longer accepts. A person decides."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.json import JSON

from billing_pipeline.cli.context import open_context, record_decision
from billing_pipeline.cli.options import Json, Reason
from billing_pipeline.cli.output import Document, answer, table

app = typer.Typer(no_args_is_help=True, help="Usage of closed periods that waits for a decision.")
COLUMNS = ("id", "day", "organization_id", "meter", "amount")
Ids = Annotated[list[str], typer.Argument(help="Ids from `billing adjustments list`.")]


@app.command("list")
def list_adjustments(as_json: Json = False) -> None:
    """List the amounts that wait for a decision, and past decisions."""
    from billing_pipeline.operations import adjust

    document = adjust.list_adjustments(open_context())
    answer(as_json, document, _parts(document), needs_person=document["open"])


def _parts(document: Document) -> Iterator[RenderableType]:
    if document["open"]:
        title = "To decide: `approve` or `dismiss`"
        yield table(document["open"], *COLUMNS, "explanation", title=title)
    else:
        yield "No amount waits for a decision."
    if document["decided"]:
        rows = [
            {**row, "reported_in": ", ".join(f"{e['day']} {e['amount']:+d}" for e in entries)}
            for row in document["decided"]
            for entries in [row["reported_in"]]
        ]
        yield table(rows, *COLUMNS, "decision", "reported_in", "reason", title="Decided")


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="Id from `billing adjustments list`.")],
    as_json: Json = False,
) -> None:
    """Show one amount, the decision about it, and the meter events behind it."""
    from billing_pipeline.operations import adjust

    document = adjust.show_adjustment(open_context(), id)
    answer(as_json, document, [JSON.from_data(document, default=str)])


@app.command()
def approve(ids: Ids, reason: Reason, as_json: Json = False) -> None:
    """Report amounts in the current billing period. The next run sends them."""
    _decide("approve", ids, reason, as_json)


@app.command()
def dismiss(ids: Ids, reason: Reason, as_json: Json = False) -> None:
    """Write amounts off. They are never billed."""
    _decide("dismiss", ids, reason, as_json)


def _decide(decision: str, ids: list[str], reason: str, as_json: bool) -> None:
    from billing_pipeline.operations import adjust

    context = open_context()
    decide = adjust.approve if decision == "approve" else adjust.dismiss
    decided = [decide(context, id, reason).as_json() for id in ids]
    record_decision(context, reason)
    parts = []
    for row in decided:
        parts.append(f"{row['id']}: {row['amount']:+d} {row['decision']}.")
        for entry in row["reported_in"]:
            command = f"billing run --from {entry['day']} --to {entry['day']}"
            message = f"{entry['amount']:+d} on {entry['day']}. Once that day is over, report it"
            parts.append(f"  {message} with `{command}`.")
    answer(as_json, {"decided": decided}, parts)
