"""What a run came to: as JSON for machines, as tables for people. No decisions, only words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from billing_pipeline.defs import DayOutcome, RunOutcome
from billing_pipeline.ledger import queries
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.preview import Preview
from billing_pipeline.operations.reconcile.rows import Reconciliation
from billing_pipeline.operations.undo import Undone
from billing_pipeline.stripe_api.verification import VerificationReport

NEEDS_A_PERSON = 1


def run_document(
    context: Context, days: Sequence[date], outcome: RunOutcome, run_id: str, error: str | None
) -> dict[str, Any]:
    """The answer of `billing run`."""
    events = context.ledger.read(queries.counts, days)
    mismatches = context.ledger.read(queries.checks, days, "mismatch")
    return {
        "from": days[0].isoformat(),
        "to": days[-1].isoformat(),
        "run_id": run_id,
        "days": [day_document(day, outcome.days.get(day, DayOutcome())) for day in days],
        "events": events,
        "sent": outcome.reporting.sent,
        "verified": events["verified"],
        "unconfirmed": events["accepted"],
        "mismatched": len(mismatches),
        "held": [held.as_json() for held in context.ledger.read(queries.holds_of, days)],
        "rejected": context.ledger.read(queries.rejected, days),
        "mismatches": mismatches,
        "gates": [
            {"day": day.isoformat(), **asdict(finding)}
            for day, findings in sorted(outcome.reporting.gates.items())
            for finding in findings
        ],
        "unread": outcome.verification.unread,
        "not_compared": outcome.verification.postponed,
        "stopped": outcome.reporting.stopped,
        "problems": outcome.reporting.problems,
        "error": outcome.configuration_error or error,
    }


def day_document(day: date, outcome: DayOutcome) -> dict[str, Any]:
    """One day of a run: its counts, or the error that kept it from being counted."""
    counted = outcome.counted
    document: dict[str, Any] = {"day": day.isoformat(), "error": outcome.error}
    if counted is None:
        return document
    return document | {
        "folder_exists": counted.folder_exists,
        "files": [file.name for file in counted.files],
        "ignored_files": list(counted.ignored_files),
        "rows_read": counted.rows_read,
        "readings": counted.readings,
        "duplicates": counted.duplicates,
        "exact_duplicates": counted.exact_duplicates,
        "conflicting_duplicates": counted.conflicting_duplicates,
        "quarantined": counted.quarantined_rows,
        "quarantined_by_reason": counted.quarantined,
        "snapshot_id": outcome.snapshot_id,
    }


def exit_code(document: dict[str, Any], outcome: RunOutcome) -> int:
    """0 all done and right, 1 something needs a person, 2 wrong configuration."""
    if outcome.configuration_error or outcome.reporting.denied:
        return 2
    wrong = (
        document["error"]
        or document["stopped"]
        or document["held"]
        or document["rejected"]
        or document["mismatched"]
        or document["problems"]
        or document["unread"]
        or unresolved(document["events"])
    )
    return NEEDS_A_PERSON if wrong else 0


def show_run(console: Console, document: dict[str, Any]) -> None:
    """Print a run for a person: the days, the events, then what needs attention."""
    table = Table("day", *(_right("rows"), _right("readings"), _right("duplicates")),
                  _right("quarantined"), "", title="Usage days")  # fmt: skip
    for day in document["days"]:
        note = day["error"] or ""
        if not note and day.get("quarantined"):
            reasons = day["quarantined_by_reason"].items()
            note = "quarantined: " + ", ".join(f"{number} {reason}" for reason, number in reasons)
        if not note and not day.get("folder_exists", True):
            note = "no folder: zero readings"
        if not note and day.get("ignored_files"):
            note = "not read: " + ", ".join(day["ignored_files"])
        counts = [
            str(day.get(name, ""))
            for name in ("rows_read", "readings", "duplicates", "quarantined")
        ]
        table.add_row(day["day"], *counts, note)
    console.print(table)
    console.print(events_line(document["events"], document["sent"]))
    console.print(compared_later(document["not_compared"]), end="")
    for panel in attention(document):
        console.print(panel)


def compared_later(number: int) -> str:
    """A line on figures that wait for the reads of another day; empty where there are none."""
    message = "figures are compared with Stripe another day: its reads have a monthly budget"
    return f"{number} {message} (BILLING_VERIFICATION_READS).\n" if number else ""


def events_line(events: dict[str, int], sent: int | None = None) -> str:
    """Meter events by state in one line."""
    states = ", ".join(f"{number} {state}" for state, number in events.items() if number)
    line = f"Meter events: {states or 'none'}."
    return line if sent is None else f"{line} Sent in this run: {sent}."


def attention(document: dict[str, Any]) -> list[RenderableType]:
    """Panels for everything that needs a person, with what to do."""
    panels: list[RenderableType] = []
    if document.get("error"):
        panels.append(Panel(document["error"], title="Not done", border_style="red"))
    if document.get("stopped") and document["stopped"] not in (document.get("error") or ""):
        panels.append(
            Panel(
                f"{document['stopped']}\nWhat was not sent stays planned; run again.",
                title="Delivery stopped",
                border_style="red",
            )
        )
    panels += _table_panel(
        "Held: not reported yet", document.get("held", []),
        ("day", "organization_id", "meter", "value", "explanation"),
        "Usage without a customer is sent by the next run once BILLING_CUSTOMERS_FILE or "
        "`billing customers import FILE` names one. What can no longer be reported where it belongs "
        "waits for a decision: `billing adjustments list`.",
    )  # fmt: skip
    panels += _table_panel(
        "The gate is closed: implausible counts",
        [{**gate, "organization": gate["organization_id"] or "(all)"}
         for gate in document.get("gates", [])],
        ("day", "organization", "text"),
        "Fix the readings, or let a day through: `billing gate approve --day DAY --reason …`.",
    )  # fmt: skip
    panels += _table_panel(
        "Refused by Stripe", document.get("rejected", []),
        ("day", "organization_id", "meter", "customer", "value", "error_message"),
        "A fixed mapping is enough for the next run; what was fixed in Stripe needs "
        f"`billing run --from {document.get('from')} --to {document.get('to')} --retry-rejected`.",
    )  # fmt: skip
    panels += _table_panel(
        "Stripe disagrees with the ledger", document.get("mismatches", []),
        ("usage_day", "customer", "event_name", "expected", "reported"),
        "`billing explain` shows what was reported; somebody else may have sent events to this meter.",
    )  # fmt: skip
    for title, name in (("Customers file", "problems"), ("Summaries not read", "unread")):
        if document.get(name):
            panels.append(Panel("\n".join(document[name][:20]), title=title, border_style="yellow"))
    if document.get("unconfirmed"):
        panels.append(
            Panel(
                f"{document['unconfirmed']} accepted events are not in Stripe's summaries yet. "
                "These lag; `billing verify` looks again.",
                title="Not confirmed yet",
                border_style="yellow",
            )
        )
    return panels


def _table_panel(
    title: str, rows: list[dict[str, Any]], columns: Sequence[str], advice: str
) -> list[RenderableType]:
    if not rows:
        return []
    table = Table(*columns)
    for row in rows[:20]:
        table.add_row(*(str(row[column]) for column in columns))
    more = f"… and {len(rows) - 20} more (see --json)\n" if len(rows) > 20 else ""
    return [
        Panel(Group(table, more + advice), title=f"{title} ({len(rows)})", border_style="yellow")
    ]


def show_plan(console: Console, preview: Preview, days: int) -> None:
    """Print a preview of so many days: what changed in each, then line by line."""
    planned = days - len(preview.missing) - len(preview.errors)
    for day in sorted({line.day for line in preview.lines}):
        console.print(f"{day}: {preview.causes[day].text}")
    if preview.lines:
        table = Table("day", "organization", "meter", "action", _right("in Stripe"),
                      _right("target"), _right("difference"), _right("to send"), "")  # fmt: skip
        for line in preview.lines:
            before = "" if line.before is None else str(line.before)
            table.add_row(
                line.day.isoformat(), line.organization_id, line.meter, line.action, before,
                str(line.target), f"{line.difference:+d}", str(line.value), line.detail,
            )  # fmt: skip
        console.print(table)
    elif planned:
        console.print(f"Nothing to send for {planned} day(s): what they ask for was reported.")
    else:
        console.print("No day could be planned.")
    if preview.missing:
        console.print(
            f"No snapshot yet for {len(preview.missing)} day(s), from {min(preview.missing)} to "
            f"{max(preview.missing)}: `billing run` takes them, `billing run --dry-run` counts "
            "them for a preview."
        )
    for day, error in preview.errors.items():
        console.print(Text.assemble((str(day), "red"), f": {error}"))


def show_reconciliation(console: Console, found: Reconciliation) -> None:
    """Print a month: a row per organization, meter and period, then what differs, and why."""
    table = Table("organization", "meter", "period", "invoice", _right("readings"),
                  _right("counted"), _right("reported"), _right("Stripe"), _right("invoiced"), "",
                  title=f"{found.month:%Y-%m}: from readings to invoices")  # fmt: skip
    subscribers = {row.period.customer for row in found.rows if row.period.billing is not None}
    for row in found.rows:
        line, figures = row.as_json(), row.figures
        verdict = ("right", "green")
        if any(figures.differences.values()):
            verdict = ("differs", "yellow")
        elif row.status == "none" and figures.ledger and row.period.customer in subscribers:
            verdict = ("on no invoice", "yellow")
        table.add_row(
            line["organization_id"], row.meter,
            f"{line['period_start'][5:16]} – {line['period_end'][5:16]}".replace("T", " "),
            line["invoice"] or row.status, str(figures.readings), str(figures.snapshot),
            str(figures.ledger), "–" if figures.stripe is None else f"{figures.stripe:g}",
            "–" if figures.invoiced is None else str(figures.invoiced),
            Text(*verdict) if row.is_right else Text("no cause known", "bold red"),
        )  # fmt: skip
    console.print(table if found.rows else f"Nothing is known of {found.month:%Y-%m}.")
    for row in found.rows:
        for step, amount in row.figures.differences.items():
            if amount:
                known = [cause.text for cause in row.figures.causes if cause.step is step]
                why = "; ".join(dict.fromkeys(known)) or "no cause is known"
                console.print(
                    f"{', '.join(row.organizations)}, {row.meter}, {step}: {amount:+g}: {why}"
                )
    for problem in found.problems:
        console.print(Text(problem, "red"))
    verified = found.verified
    hours = "" if verified.hours is None else f", {verified.hours:.1f} hours after a day's end"
    console.print(
        f"Confirmed by Stripe's summaries: {verified.verified} of {verified.cells} cells "
        f"({verified.share:.1%}){hours}."
    )


def undone_document(context: Context, undone: Undone) -> dict[str, Any]:
    """The answer of `billing undo`."""
    events = context.ledger.read(queries.counts, undone.days)
    return {
        "run": undone.run,
        "undone_by": context.ledger.run,
        "days": [day.isoformat() for day in undone.days],
        "reported": [line.as_json() for line in undone.lines],
        "unchanged": undone.unchanged,
        "sent": undone.reporting.sent,
        "stopped": undone.reporting.stopped,
        "events": events,
        "unresolved": unresolved(events),
    }


def show_undone(console: Console, document: dict[str, Any], undone: Undone) -> None:
    """Print what undoing a run did."""
    table = Table("day", "organization", "meter", _right("was"), _right("is again"),
                  _right("sent"))  # fmt: skip
    for line in undone.lines:
        table.add_row(line.day.isoformat(), line.organization_id, line.meter,
                      str(line.before), str(line.target), str(line.value))  # fmt: skip
    console.print(table if undone.lines else f"Nothing of {undone.run} is left to undo.")
    console.print(events_line(document["events"], document["sent"]))
    for panel in _table_panel(
        "Not undone", undone.unchanged, ("day", "organization_id", "meter", "why"),
        "These cells stay as they are.",
    ):  # fmt: skip
        console.print(panel)
    if document["stopped"]:
        console.print(Text.assemble(("stopped: ", "red"), document["stopped"]))


def verification_document(
    context: Context, days: Sequence[date], report: VerificationReport
) -> dict[str, Any]:
    """The answer of `billing verify`."""
    events = context.ledger.read(queries.counts, days)
    mismatches = context.ledger.read(queries.checks, days, "mismatch")
    return {
        "from": days[0].isoformat(),
        "to": days[-1].isoformat(),
        "verified_share": report.share,
        "compared": report.agreed + report.lagging + len(report.mismatched),
        "events": events,
        "verified": events["verified"],
        "unconfirmed": events["accepted"],
        "mismatched": len(mismatches),
        "mismatches": mismatches,
        "held": [held.as_json() for held in context.ledger.read(queries.holds_of, days)],
        "rejected": context.ledger.read(queries.rejected, days),
        "unresolved": unresolved(events),
        "unread": report.unread,
        "not_compared": report.postponed,
    }


def unresolved(events: dict[str, int]) -> int:
    """Events whose outcome is open."""
    return sum(events[state] for state in ("planned", "sending", "ambiguous"))


def _right(title: str) -> Any:
    from rich.table import Column

    return Column(title, justify="right")
