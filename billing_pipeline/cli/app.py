"""The `billing` command: its commands put together, and its errors.

Exit codes: 0 all done and right; 1 done, and something needs a person, or Stripe could not be
reached; 2 wrong use or configuration. With `--json`, a command prints one JSON document to standard
output and nothing else; after an error that is {"error": …}.
"""

import json
import sys
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from billing_pipeline import __version__
from billing_pipeline.cli import (
    adjustments,
    customers,
    demo,
    doctor,
    events,
    explain,
    gate,
    meters,
    reconcile,
    run,
    sandbox,
    simulate,
    ui,
    undo,
    verify,
)
from billing_pipeline.cli.context import at_exit
from billing_pipeline.cli.output import err
from billing_pipeline.errors import BillingError, StripeUnreachable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    run.run, run.plan, verify.verify, undo.undo, explain.explain, reconcile.reconcile,
    demo.demo, simulate.simulate, ui.ui, doctor.doctor, doctor.migrate,
):  # fmt: skip
    app.command()(command)
for noun in (gate, adjustments, meters, customers, events, sandbox):
    app.add_typer(noun.app, name=noun.__name__.rpartition(".")[2])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Turn sensor readings into a Stripe bill that is right."""


def main() -> NoReturn:
    """The console script: runs a command; an error becomes a message and an exit code."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except typer.TyperException as error:  # wrong use
        message = error.format_message() or "A command is missing."
        _fail(message, "Run `billing COMMAND --help` to see its options.", 2)
    except BillingError as error:
        message = str(error.args[0])
        if isinstance(error, StripeUnreachable):
            message = f"Stripe cannot be reached: {message}"
        _fail(message, error.advice, error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", "", 130)
    finally:
        at_exit.close()


def _fail(message: str, advice: str, code: int) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": f"{message} {advice}".rstrip()}, ensure_ascii=False))
    else:
        err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        if advice:
            err.print(advice, soft_wrap=True)
    sys.exit(code)
