"""`billing reconcile`: a month's figures, from the readings to the invoices."""

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from billing_pipeline.cli.context import open_context
from billing_pipeline.cli.options import Json, a_month
from billing_pipeline.cli.output import Document, answer, progress, table

COLUMNS = ("organization_id", "meter", "period", "invoice", "readings", "snapshot", "ledger",
           "stripe", "invoiced", "verdict")  # fmt: skip


def reconcile(
    month: Annotated[
        date,
        typer.Option(parser=a_month, metavar="MONTH", help="Month in which periods end, YYYY-MM."),
    ],
    organization: Annotated[str | None, typer.Option(help="Only this organization.")] = None,
    as_json: Json = False,
) -> None:
    """Compare a month's figures, from readings to invoices, and explain each difference.

    Exits with 1 if a difference has no known cause.
    """
    from billing_pipeline.operations.reconcile.month import reconcile_month

    context, chosen = open_context(), None if organization is None else [organization]
    with progress() as watch:
        found = reconcile_month(context, month, organizations=chosen, progress=watch)
    document = found.as_json()
    answer(as_json, document, _parts(document), needs_person=not found.is_right)


def _parts(document: Document) -> Iterator[RenderableType]:
    """A row per organization, meter and period; then each difference with its causes."""
    month, rows = document["month"], document["rows"]
    if rows:
        subscribers = {row["customer"] for row in rows if row["subscription"]}
        shown = (_shown(row, row["customer"] in subscribers) for row in rows)
        yield table(shown, *COLUMNS, title=f"{month}: from readings to invoices")
    else:
        yield f"No usage and no billing period is known in {month}."
    for row in rows:
        for step, amount in row["differences"].items():
            if amount:
                known = (cause["text"] for cause in row["causes"] if cause["step"] == step)
                why = "; ".join(dict.fromkeys(known)) or "no known cause"
                yield f"{row['organization_id']}, {row['meter']}, {step}: {amount:+g}: {why}"
    yield from (Text(problem, "red") for problem in document["problems"])
    verified = document["verified"]
    hours = (
        "" if verified["hours"] is None else f", {verified['hours']:.1f} hours after a day's end"
    )
    yield (
        f"Stripe's summaries confirm {verified['verified']} of {verified['cells']} cells "
        f"({verified['share']:.1%}){hours}."
    )


def _shown(row: Document, has_subscription: bool) -> dict[str, Any]:
    verdict = Text("right", "green")
    if row["unexplained"]:
        verdict = Text("no known cause", "bold red")
    elif any(row["differences"].values()):
        verdict = Text("differs", "yellow")
    elif row["status"] == "none" and row["ledger"] and has_subscription:
        verdict = Text("on no invoice", "yellow")
    period = f"{row['period_start'][5:16]} – {row['period_end'][5:16]}".replace("T", " ")
    invoice = row["invoice"] or row["status"]
    return {**row, "period": period, "invoice": invoice, "verdict": verdict}
