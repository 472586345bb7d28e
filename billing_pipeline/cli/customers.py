"""`billing customers`: which Stripe customer pays for which organization."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from billing_pipeline.cli.context import open_context
from billing_pipeline.cli.options import Json
from billing_pipeline.cli.output import answer, labelled, table

app = typer.Typer(no_args_is_help=True, help="Which Stripe customer pays for which organization.")


@app.command("import")
def import_customers(
    file: Annotated[
        Path, typer.Argument(help="CSV file with the columns organization_id,stripe_customer_id.")
    ],
    as_json: Json = False,
) -> None:
    """Import the organization-to-customer mapping."""
    from billing_pipeline.operations.day_inputs import unfinished_days

    context = open_context()
    report = context.customers.import_file(file, context.clock())
    today = context.clock().date()
    unfinished = [day.isoformat() for day in unfinished_days(context) if day < today]
    document = {**vars(report), "days_to_run": unfinished}
    done = f"{report.added} added, {report.changed} changed, {report.unchanged} unchanged."
    problems = [labelled("ignored", problem, "yellow") for problem in report.problems]
    parts: list[RenderableType] = [done, *problems]
    if unfinished:
        command = f"billing run --from {unfinished[0]} --to {unfinished[-1]}"
        parts.append(f"Some usage is on hold or unfinished. Report it with `{command}`.")
    answer(as_json, document, parts, needs_person=report.problems)


@app.command("list")
def list_customers(as_json: Json = False) -> None:
    """List the customer of each organization, and its subscriptions."""
    context = open_context()
    known = context.customers.known(context.settings.billing_customers_file)
    owned = context.customers.subscriptions_of(set(known.customers.values()))
    customers: list[dict[str, Any]] = [
        {
            "organization_id": organization,
            "stripe_customer_id": customer,
            "source": "imported" if organization in known.imported else "Stripe events",
            "deleted": customer in known.deleted,
            "subscriptions": owned.get(customer, []),
        }
        for organization, customer in sorted(known.customers.items())
    ]
    contradictions = known.contradictions()
    document = {
        "customers": customers, "undecided": known.undecided, "contradictions": contradictions,
    }  # fmt: skip
    shown = [
        {
            **row,
            "stripe_customer_id": row["stripe_customer_id"] + " (deleted)" * row["deleted"],
            "subscriptions": ", ".join(f"{s['id']} {s['status']}" for s in row["subscriptions"])
            or None,
        }
        for row in customers
    ]
    columns = ("organization_id", "stripe_customer_id", "source", "subscriptions")
    warnings = [labelled("check", message, "yellow") for message in contradictions]
    answer(as_json, document, [table(shown, *columns), *warnings])
