"""The days of a run: as a document, as tables, and everything that needs a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table

from billing_pipeline.cli.output import Document, attention_panel, table

if TYPE_CHECKING:
    from billing_pipeline.defs import RunOutcome
    from billing_pipeline.operations.context import Context
    from billing_pipeline.stripe_api.verification import VerificationReport
    from billing_pipeline.usage.activity import CountedDay

SHOWN_PROBLEMS = 20


def run_document(
    context: Context, days: Sequence[date], outcome: RunOutcome, run_id: str, error: str | None
) -> dict[str, Any]:
    """The answer of `billing run`."""
    counted = []
    for day in days:
        found = outcome.days.get(day)
        known = (found.counted, found.error, found.snapshot_id) if found else (None, None)
        counted.append(day_document(day, *known))
    return {
        **reported_document(context, days, outcome.verification),
        "run_id": run_id,
        "days": counted,
        "sent": outcome.reporting.sent,
        "gates": [
            {"day": day.isoformat(), **asdict(finding)}
            for day, findings in sorted(outcome.reporting.gates.items())
            for finding in findings
        ],
        "stopped": outcome.reporting.stopped,
        "problems": outcome.reporting.problems,
        "error": outcome.configuration_error or error,
    }


def reported_document(
    context: Context, days: Sequence[date], verification: VerificationReport
) -> dict[str, Any]:
    """What the ledger has of these days, and how it compares with Stripe's summaries."""
    from billing_pipeline.ledger import queries

    events = context.ledger.read(queries.counts, days)
    mismatches = context.ledger.read(queries.checks, days, "mismatch")
    return {
        "from": days[0].isoformat(),
        "to": days[-1].isoformat(),
        "events": events,
        "verified": events["verified"],
        "unconfirmed": events["accepted"],
        "unresolved": unresolved(events),
        "mismatched": len(mismatches),
        "mismatches": mismatches,
        "held": [hold.as_json() for hold in context.ledger.read(queries.holds_of, days)],
        "rejected": context.ledger.read(queries.rejected, days),
        "unread": verification.unread,
        "not_compared": verification.postponed,
    }


def day_document(
    day: date, counted: CountedDay | None, error: str | None, snapshot_id: str | None = None
) -> dict[str, Any]:
    """The counts of a usage day, or the error for which it was not counted."""
    document: dict[str, Any] = {"day": day.isoformat(), "error": error}
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
        "snapshot_id": snapshot_id,
    }


def unresolved(events: Mapping[str, int]) -> int:
    """How many events have no known outcome yet."""
    return sum(events[state] for state in ("planned", "sending", "ambiguous"))


def needs_person(document: Document) -> bool:
    """Whether something of these days needs a person, or another run."""
    names = ("error", "stopped", "problems", "held", "rejected", "mismatched", "unread",
             "unresolved")  # fmt: skip
    return any(document.get(name) for name in names)


def exit_code(document: Document, outcome: RunOutcome) -> int:
    """0 all done and right, 1 something needs a person, 2 wrong configuration."""
    if outcome.configuration_error or outcome.reporting.denied:
        return 2
    return 1 if needs_person(document) else 0


# For people ------------------------------------------------------------------------------------


def days_table(days: Sequence[Document]) -> Table:
    """What was counted on each day, with warnings."""
    columns = ("day", "rows_read", "readings", "duplicates", "quarantined", "warnings")
    rows = ({**day, "warnings": _warnings(day)} for day in days)
    return table(rows, *columns, title="Usage days")


def _warnings(day: Document) -> str:
    found = [day["error"]] if day["error"] else []
    if day.get("quarantined"):
        reasons = day["quarantined_by_reason"].items()
        found.append("quarantined: " + ", ".join(f"{rows} {reason}" for reason, rows in reasons))
    if not day.get("folder_exists", True):
        found.append("no folder, so zero readings")
    if day.get("ignored_files"):
        found.append("ignored: " + ", ".join(day["ignored_files"]))
    return "; ".join(found)


def reported_parts(document: Document) -> Iterator[RenderableType]:
    """Meter events by state, figures that are not compared with Stripe yet, then `attention`."""
    states = [f"{number} {state}" for state, number in document["events"].items() if number]
    sent = f" Sent in this run: {document['sent']}." if "sent" in document else ""
    yield f"Meter events: {', '.join(states) or 'none'}.{sent}"
    if number := document.get("not_compared"):
        yield (
            f"{number} figures are not compared with Stripe yet: reading its summaries has a "
            "monthly budget (BILLING_VERIFICATION_READS). A later verification compares them."
        )
    yield from attention(document)


def attention(document: Document) -> Iterator[RenderableType]:
    """Panels for everything that needs a person, with what to do about it."""
    if error := document.get("error"):
        yield Panel(error, title="Failed", border_style="red")
    if (stopped := document.get("stopped")) and stopped not in (error or ""):
        message = f"{stopped}\nUnsent events stay planned. Run again to send them."
        yield Panel(message, title="Delivery stopped", border_style="red")
    again = f"billing run --from {document.get('from')} --to {document.get('to')} --retry-rejected"
    for name, title, columns, advice in (
        ("held", "Usage on hold", ("day", "organization_id", "meter", "value", "explanation"),
         "If no customer is known, add it to BILLING_CUSTOMERS_FILE or run `billing customers "
         "import FILE`; the next run reports the usage. If its own period no longer accepts it, "
         "decide: `billing adjustments list`."),
        ("gates", "Days at the gate: implausible counts", ("day", "organization_id", "text"),
         "Fix the readings, or approve the day: `billing gate approve --day DAY --reason …`."),
        ("rejected", "Rejected by Stripe",
         ("day", "organization_id", "meter", "customer", "value", "error_message"),
         "The next run reports usage again once its mapping is fixed. After a fix in Stripe, run "
         f"`{again}`."),
        ("mismatches", "Stripe's summaries differ from the ledger",
         ("usage_day", "customer", "event_name", "expected", "reported"),
         "`billing explain` shows what was reported. Another sender may use the same meter."),
        ("unchanged", "Not undone", ("day", "organization_id", "meter", "why"),
         "These cells stay as they are."),
    ):  # fmt: skip
        yield from attention_panel(title, document.get(name, ()), columns, advice)
    for title, name in (("Customers file", "problems"), ("Summaries not read", "unread")):
        if lines := document.get(name):
            yield Panel("\n".join(lines[:SHOWN_PROBLEMS]), title=title, border_style="yellow")
    if number := document.get("unconfirmed"):
        message = (
            f"{number} accepted events are not in Stripe's summaries yet. The summaries lag; "
            "`billing verify` compares again."
        )
        yield Panel(message, title="Not confirmed yet", border_style="yellow")
