"""`billing gate`: days whose counts are implausible wait here for a person."""

from dataclasses import asdict
from datetime import date
from typing import Annotated

import typer
from rich.console import RenderableType

from billing_pipeline.cli.context import open_context, record_decision
from billing_pipeline.cli.options import Json, Reason, a_day
from billing_pipeline.cli.output import answer, table

app = typer.Typer(no_args_is_help=True, help="Days that wait because their counts are implausible.")


@app.command("list")
def list_gates(as_json: Json = False) -> None:
    """List the days that wait at the gate, and why."""
    from billing_pipeline.operations.gate import closed_gates

    found = closed_gates(open_context())
    gates = [{**asdict(gate), "day": gate.day.isoformat()} for gate in found]
    rows = [{**finding, "day": gate["day"]} for gate in gates for finding in gate["findings"]]
    parts: list[RenderableType] = ["No day waits at the gate."]
    if gates:
        advice = 'If the counts are right: `billing gate approve --day DAY --reason "…"`.'
        parts = [table(rows, "day", "organization_id", "text"), advice]
    answer(as_json, {"gates": gates}, parts, needs_person=gates)


@app.command()
def approve(
    day: Annotated[date, typer.Option(parser=a_day, metavar="DAY", help="UTC usage day.")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Approve the counts of a day. The next run reports them."""
    from billing_pipeline.operations.gate import approve_gate

    context = open_context()
    approved = [asdict(finding) for finding in approve_gate(context, day, reason)]
    record_decision(context, reason)
    document = {"day": day.isoformat(), "reason": reason.strip(), "approved": approved}
    parts = [f"{each['organization_id'] or '(all)'}: {each['text']}" for each in approved]
    parts.append(f"Approved. `billing run --from {day} --to {day}` reports it.")
    answer(as_json, document, parts)
