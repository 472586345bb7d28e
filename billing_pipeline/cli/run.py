"""`billing run` and `billing plan`: report usage, or show what a run would report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from billing_pipeline.cli import report
from billing_pipeline.cli.context import actor, open_days
from billing_pipeline.cli.options import From, Json, RetryRejected, To
from billing_pipeline.cli.output import Document, answer, labelled, progress, table

if TYPE_CHECKING:
    from billing_pipeline.operations.context import Context

NOT_OVER = "the day is not over yet: counted, but not reported"


def run(
    first: From,
    last: To,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count and plan, but write and send nothing.")
    ] = False,
    retry_rejected: RetryRejected = False,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count every day again, even if no file has changed.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Reason, recorded in the audit trail.")] = "",
    as_json: Json = False,
) -> None:
    """Count usage, report it to Stripe, and verify it there."""
    context, days = open_days(first, last, needs_key=not dry_run)
    if dry_run:
        _preview(context, days, retry_rejected, as_json, count=True)
    from billing_pipeline.defs import run_days

    with progress() as watch:
        outcome, run_id, error = run_days(
            first, last, actor(reason),
            retry_rejected=retry_rejected, recount=recount, progress=watch,
        )  # fmt: skip
    document = report.run_document(context, days, outcome, run_id, error)
    parts = [report.days_table(document["days"]), *report.reported_parts(document)]
    answer(as_json, document, parts, exit_code=report.exit_code(document, outcome))


def plan(
    first: From, last: To, retry_rejected: RetryRejected = False, as_json: Json = False
) -> None:
    """Show what a run would send, from the snapshots already taken. Writes and sends nothing."""
    _preview(*open_days(first, last), retry_rejected, as_json, count=False)


def _preview(
    context: Context, days: Sequence[date], retry_rejected: bool, as_json: bool, *, count: bool
) -> None:
    from billing_pipeline.operations import preview
    from billing_pipeline.rules.planning import PlanOptions

    # A run that a person starts reports again what was undone.
    options = PlanOptions(retry_rejected, report_undone=True)
    document: dict[str, Any] = {"from": days[0].isoformat(), "to": days[-1].isoformat(), "sent": 0}
    if count:
        with progress() as watch:
            found = preview.dry_run(context, days, options=options, progress=watch)
        errors = dict.fromkeys(found.missing, NOT_OVER) | found.errors
        document["days"] = [
            report.day_document(day, found.counted.get(day), errors.get(day)) for day in days
        ]
    else:
        found = preview.preview_days(context, days, options=options)
    document |= found.as_json()
    wrong = found.errors or found.missing or any(line.action == "hold" for line in found.lines)
    planned = len(days) - len(found.missing) - len(found.errors)
    parts = _plan_parts(document, planned, context.clock().date().isoformat())
    answer(as_json, document, parts, needs_person=wrong)


def _plan_parts(document: Document, planned: int, today: str) -> Iterator[RenderableType]:
    """What was counted, what has changed on each day, the plan, and days without one."""
    if "days" in document:
        yield report.days_table(document["days"])
    for day in sorted({line["day"] for line in document["plan"]}):
        yield f"{day}: {document['causes'][day]['text']}"
    if document["plan"]:
        columns = ("day", "organization_id", "meter", "action", "before", "target", "difference",
                   "value", "detail")  # fmt: skip
        yield table(document["plan"], *columns)
    elif planned:
        yield f"Nothing to send for {_days(planned)}: Stripe has this usage already."
    else:
        yield "No day could be planned."
    missing = document["days_without_snapshot"]
    if over := [day for day in missing if day < today]:
        which = over[0] if len(over) == 1 else f"{over[0]} to {over[-1]}"
        yield (
            f"No snapshot was taken after the day's end for {_days(len(over))} ({which}). "
            "`billing run` counts and reports; `billing run --dry-run` counts for a preview."
        )
    for day in missing[len(over) :]:
        yield f"{day} is not over yet: plan it once the UTC day has ended."
    yield from (labelled(day, error) for day, error in document["errors"].items())


def _days(number: int) -> str:
    return "1 day" if number == 1 else f"{number} days"
