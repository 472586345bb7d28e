"""`billing meters`: the meters in Stripe that usage is reported to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from billing_pipeline.cli.context import open_context
from billing_pipeline.cli.options import Json
from billing_pipeline.cli.output import answer, table

if TYPE_CHECKING:
    from billing_pipeline.stripe_api.catalogue import MeterCatalogue

app = typer.Typer(no_args_is_help=True, help="The meters in Stripe.")


@app.command()
def ensure(as_json: Json = False) -> None:
    """Create the meters that are missing in Stripe. Fails if an existing one differs."""
    from billing_pipeline.ledger.account import bind
    from billing_pipeline.stripe_api.catalogue import ensure_meters

    context = open_context()
    meters = context.settings.billing_meters
    found, made = asyncio.run(ensure_meters(context.gateway, meters, context.ledger))
    context.ledger.write(bind, found.account_id, found.livemode, found.meters, context.clock())
    _answer(found, made, as_json)


@app.command("list")
def list_meters(as_json: Json = False) -> None:
    """List the meters that usage is reported to."""
    from billing_pipeline.stripe_api.catalogue import look_up

    context = open_context()
    _answer(asyncio.run(look_up(context.gateway, context.settings.billing_meters)), [], as_json)


def _answer(found: MeterCatalogue, made: Sequence[str], as_json: bool) -> None:
    columns = ("event_name", "id", "formula", "event_time_window", "measure")
    rows = [
        {"event_name": m.event_name, "id": m.meter_id, "formula": m.formula,
         "event_time_window": m.event_time_window, "measure": m.measure}
        for m in found.meters
    ]  # fmt: skip
    document = {
        "account": found.account_id, "livemode": found.livemode, "made": made, "meters": rows,
    }  # fmt: skip
    mode = "live" if found.livemode else "test"
    title = f"Account {found.account_id or '(not readable)'}, {mode} mode"
    created = [f"Created {name}." for name in made]
    answer(as_json, document, [table(rows, *columns, title=title), *created])
