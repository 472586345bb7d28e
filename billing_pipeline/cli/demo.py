"""`billing demo`: real readings become verified meter totals, on a local Stripe."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from billing_pipeline.cli.options import Json
from billing_pipeline.cli.output import out, print_answer, progress


def demo(
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the data of an earlier demo first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bill real readings on a local Stripe, from files to a verified invoice."""
    from billing_pipeline.sandbox.demo import run_demo, show_demo

    with progress() as watch:
        document, code = run_demo(datetime.now(UTC), watch, fresh=fresh)
    print_answer(as_json, document, [])
    if not as_json:
        show_demo(out, document)
    raise typer.Exit(code)
