"""The `billing` command: thin; each command opens the rooms and calls what is below.

Exit codes: 0 all done and right; 1 done, and something needs a person; 2 wrong use or
configuration. With `--json`, one JSON document goes to standard output and nothing else does.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from billing_pipeline import __version__
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger.account import bind
from billing_pipeline.operations import adjust as adjustments
from billing_pipeline.operations.bill import verify_days
from billing_pipeline.operations.context import (
    Actor,
    Context,
    utc_now,
)
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.gate import approve_gate, closed_gates, record_run
from billing_pipeline.operations.preview import Preview, preview_days
from billing_pipeline.operations.preview import dry_run as dry_run_days
from billing_pipeline.rules.planning import PlanOptions
from billing_pipeline.settings import (
    Settings,
    load_settings,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
meters_app = typer.Typer(no_args_is_help=True, help="The meters in Stripe.")
customers_app = typer.Typer(
    no_args_is_help=True, help="Who pays: organization and Stripe customer."
)
events_app = typer.Typer(no_args_is_help=True, help="What Stripe said, as webhooks stored it.")
gate_app = typer.Typer(no_args_is_help=True, help="Days whose counts are implausible.")
adjustments_app = typer.Typer(
    no_args_is_help=True,
    help="Usage that its own period no longer accepts: carry it or write it off.",
)
sandbox_app = typer.Typer(no_args_is_help=True, help="A local Stripe, and sample readings.")
app.add_typer(meters_app, name="meters")
app.add_typer(customers_app, name="customers")
app.add_typer(events_app, name="events")
app.add_typer(gate_app, name="gate")
app.add_typer(adjustments_app, name="adjustments")
app.add_typer(sandbox_app, name="sandbox")

# Ids come from other people's files: nothing in them is markup.
out = Console(markup=False, highlight=False)
err = Console(stderr=True, markup=False, highlight=False)


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise typer.BadParameter(f"{text!r} is not a day; write it as YYYY-MM-DD")
    return day


def _month(text: str) -> date:
    try:
        month = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        month = None
    if month is None or f"{month:%Y-%m}" != text:
        raise typer.BadParameter(f"{text!r} is not a month; write it as YYYY-MM")
    return month


_at_the_end = ExitStack()
"""What is open when a command ends, closed by `main`."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
From = Annotated[date, typer.Option("--from", parser=_day, metavar="DAY", help="First UTC day.")]
To = Annotated[date, typer.Option("--to", parser=_day, metavar="DAY", help="Last UTC day too.")]
RetryRejected = Annotated[
    bool,
    typer.Option("--retry-rejected", help="Report again what Stripe refused, once that is fixed."),
]


def main() -> NoReturn:
    """The console script: turns what can go wrong into a clear message and an exit code."""
    from billing_pipeline.errors import StripeUnreachable

    try:
        sys.exit(app(standalone_mode=False) or 0)
    except typer.TyperException as error:  # wrong use
        message = error.format_message() or "a command is missing"
        _fail(f"{message}\n`billing COMMAND --help` shows how it is used.", 2)
    except ConfigurationError as error:
        _fail(str(error), 2)
    except StripeUnreachable as error:
        _fail(f"Stripe cannot be reached: {error}", 1)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    finally:
        _at_the_end.close()


def _fail(message: str, code: int) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": message}, ensure_ascii=False))
    else:
        err.print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From sensor readings to a Stripe bill that is right."""


# Running ---------------------------------------------------------------------------------------


@app.command()
def run(
    first: From,
    last: To,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count and plan; write and send nothing.")
    ] = False,
    retry_rejected: RetryRejected = False,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count days again whose files have not changed.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept with all that this run says.")] = "",
    as_json: Json = False,
) -> None:
    """Count usage days, report them to Stripe, and verify them there."""
    settings = load_settings()
    days = _span(settings, first, last)
    if dry_run:
        with _progress() as progress:
            found = dry_run_days(
                _open(settings), days, options=_by_hand(retry_rejected), progress=progress
            )
        _show_preview(found, days, as_json)
    settings.require_key()
    from billing_pipeline.cli.report import exit_code, run_document, show_run
    from billing_pipeline.defs import run_days

    context = _open(settings)
    with _progress() as progress:
        outcome, run_id, error = run_days(
            first,
            last,
            Actor(_who(), reason),
            retry_rejected=retry_rejected,
            recount=recount,
            progress=progress,
        )
    document = run_document(context, days, outcome, run_id, error)
    _print(as_json, document, lambda: show_run(out, document))
    raise typer.Exit(exit_code(document, outcome))


@app.command()
def plan(
    first: From, last: To, retry_rejected: RetryRejected = False, as_json: Json = False
) -> None:
    """Show what would be sent for the snapshots there are; write and send nothing."""
    settings = load_settings()
    days = _span(settings, first, last)
    _show_preview(
        preview_days(_open(settings), days, options=_by_hand(retry_rejected)), days, as_json
    )


def _by_hand(retry_rejected: bool) -> PlanOptions:
    """A person's run reports again what was undone."""
    return PlanOptions(retry_rejected, report_undone=True)


def _show_preview(preview: Preview, days: list[date], as_json: bool) -> NoReturn:
    from billing_pipeline.cli.report import show_plan

    document = {
        "from": days[0].isoformat(),
        "to": days[-1].isoformat(),
        **preview.as_json(),
        "sent": 0,
    }
    _print(as_json, document, lambda: show_plan(out, preview, len(days)))
    held = any(line.action == "hold" for line in preview.lines)
    raise typer.Exit(1 if preview.errors or held or preview.missing else 0)


@app.command()
def undo(
    run: Annotated[str, typer.Option(help="The run's id, as `billing run` printed it.")],
    reason: Annotated[str, typer.Option(help="Why; kept with all that the undoing says.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be reported; send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Report again what Stripe had before a run, as new revisions, by the same rules."""
    from billing_pipeline.cli.report import show_undone, undone_document
    from billing_pipeline.operations.undo import undo_run

    settings = load_settings()
    settings.require_key()
    context = _open(settings)
    with _progress() as progress:
        undone = undo_run(context, run, Actor(_who(), reason), dry_run=dry_run, progress=progress)
    document = undone_document(context, undone)
    _print(as_json, document, lambda: show_undone(out, document, undone))
    wrong = undone.unchanged or undone.reporting.stopped or document["unresolved"]
    raise typer.Exit(1 if wrong else 0)


@app.command()
def verify(
    first: From,
    last: To,
    wait: Annotated[float, typer.Option(help="Seconds to wait for summaries that lag.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Compare all that was reported for these days with Stripe's own summaries."""
    from billing_pipeline.cli.report import (
        attention,
        compared_later,
        events_line,
        verification_document,
    )

    settings = load_settings()
    settings.require_key()
    context = _open(settings)
    days = _span(settings, first, last)
    with _progress() as progress:
        report = verify_days(context, days, wait_seconds=wait, everything=True, progress=progress)
    document = verification_document(context, days, report)

    def show() -> None:
        out.print(f"Compared {document['compared']} figures: {report.agreed} agree.")
        out.print(compared_later(report.postponed), end="")
        out.print(events_line(document["events"]))
        for panel in attention(document):
            out.print(panel)

    _print(as_json, document, show)
    wrong = ("mismatched", "unread", "held", "rejected", "unresolved")
    raise typer.Exit(1 if any(document[name] for name in wrong) else 0)


@app.command()
def explain(
    organization: Annotated[str, typer.Option(help="Organization id, as in the readings.")],
    day: Annotated[
        date | None, typer.Option(parser=_day, metavar="DAY", help="UTC usage day.")
    ] = None,
    period: Annotated[
        str | None,
        typer.Option(help="Billing period: YYYY-MM, a day inside it, or an invoice (in_…)."),
    ] = None,
    meter: Annotated[str | None, typer.Option(help="One meter only, by its event name.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a page to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Explain a day or a billing period, from what is billed down to the files.

    Every link on the way is checked; exits with 1 if one does not hold.
    """
    from billing_pipeline.operations.explain.day import explain_day
    from billing_pipeline.operations.explain.page import write_page
    from billing_pipeline.operations.explain.period import explain_period
    from billing_pipeline.operations.explain.text import show_explanation

    if (day is None) == (period is None):
        raise typer.BadParameter("name a --day or a --period")
    settings = load_settings()
    names = [spec.event_name for spec in settings.billing_meters]
    if meter is not None and meter not in names:
        raise typer.BadParameter(f"no meter is called {meter!r}; there are {', '.join(names)}")
    context, meters = _open(settings), [meter] if meter else names
    if day is not None:
        document = explain_day(context, organization, day, meters)
    else:
        assert period is not None
        with _progress() as progress:
            document = explain_period(context, organization, period, meters, progress=progress)
    if html is not None:
        write_page(html, document, f"{context.clock():%Y-%m-%d %H:%M} UTC")
        document["page"] = str(html)
    _print(as_json, document, lambda: show_explanation(out, document))
    raise typer.Exit(1 if document["checked"]["broken"] else 0)


@app.command()
def reconcile(
    month: Annotated[
        date, typer.Option(parser=_month, metavar="MONTH", help="YYYY-MM: periods that end in it.")
    ],
    organization: Annotated[str | None, typer.Option(help="One organization only.")] = None,
    as_json: Json = False,
) -> None:
    """Follow a month's figures from readings to invoice lines; each difference needs a cause.

    Exits with 1 if one has none.
    """
    from billing_pipeline.cli.report import show_reconciliation
    from billing_pipeline.operations.reconcile.month import reconcile_month

    context = _open(load_settings())
    chosen = None if organization is None else [organization]
    with _progress() as progress:
        found = reconcile_month(context, month, organizations=chosen, progress=progress)
    _print(as_json, found.as_json(), lambda: show_reconciliation(out, found))
    raise typer.Exit(0 if found.is_right else 1)


# Meters and customers --------------------------------------------------------------------------


@meters_app.command("ensure")
def meters_ensure(as_json: Json = False) -> None:
    """Make the meters that are missing in Stripe; refuse those that differ."""
    from billing_pipeline.stripe_api.catalogue import ensure_meters

    context = _open(load_settings())
    catalogue, made = asyncio.run(
        ensure_meters(context.gateway, context.settings.billing_meters, context.ledger)
    )
    context.ledger.write(
        bind, catalogue.account_id, catalogue.livemode, catalogue.meters, context.clock()
    )
    _show_meters(catalogue, made, as_json)


@meters_app.command("list")
def meters_list(as_json: Json = False) -> None:
    """Show the meters in Stripe that usage is reported to."""
    from billing_pipeline.stripe_api.catalogue import look_up

    context = _open(load_settings())
    _show_meters(
        asyncio.run(look_up(context.gateway, context.settings.billing_meters)), [], as_json
    )


def _show_meters(catalogue: Any, made: list[str], as_json: bool) -> None:
    document = {
        "account": catalogue.account_id,
        "livemode": catalogue.livemode,
        "made": made,
        "meters": [
            {
                "event_name": m.event_name,
                "id": m.meter_id,
                "formula": m.formula,
                "event_time_window": m.event_time_window,
                "measure": m.measure,
            }
            for m in catalogue.meters
        ],
    }

    def show() -> None:
        mode = "live" if catalogue.livemode else "test"
        account = catalogue.account_id or "(not readable)"
        table = Table(
            "meter",
            "id",
            "formula",
            "window",
            "fed by",
            "",
            title=f"Account {account}, {mode} mode",
        )
        for m in catalogue.meters:
            table.add_row(m.event_name, m.meter_id, m.formula, m.event_time_window or "none",
                          m.measure, "made" if m.event_name in made else "")  # fmt: skip
        out.print(table)

    _print(as_json, document, show)


@customers_app.command("import")
def customers_import(
    file: Annotated[Path, typer.Argument(help="CSV of organization_id,stripe_customer_id.")],
    as_json: Json = False,
) -> None:
    """Take over which organization is which Stripe customer."""
    context = _open(load_settings())
    report = context.customers.import_file(file, context.clock())
    today = context.clock().date()
    unfinished = [day for day in unfinished_days(context) if day < today]
    document = {
        "added": report.added,
        "changed": report.changed,
        "unchanged": report.unchanged,
        "problems": report.problems,
        "days_to_run": [day.isoformat() for day in unfinished],
    }

    def show() -> None:
        out.print(f"{report.added} added, {report.changed} changed, {report.unchanged} unchanged.")
        for problem in report.problems:
            out.print(Text.assemble(("left out: ", "yellow"), problem))
        if unfinished:
            out.print(
                "Usage was held or is unfinished; send it with "
                f"`billing run --from {unfinished[0]} --to {unfinished[-1]}`."
            )

    _print(as_json, document, show)
    raise typer.Exit(1 if report.problems else 0)


@customers_app.command("list")
def customers_list(as_json: Json = False) -> None:
    """Show which organization is which Stripe customer."""
    settings = load_settings()
    directory = _open(settings).customers
    known = directory.known(settings.billing_customers_file)
    owned = directory.subscriptions_of(set(known.customers.values()))
    document: dict[str, Any] = {
        "customers": [
            {
                "organization_id": organization,
                "stripe_customer_id": customer,
                "source": "imported" if organization in known.imported else "Stripe's events",
                "deleted": customer in known.deleted,
                "subscriptions": owned.get(customer, []),
            }
            for organization, customer in sorted(known.customers.items())
        ],
        "undecided": known.undecided,
        "contradictions": known.contradictions(),
    }

    def show() -> None:
        table = Table("organization", "Stripe customer", "known from", "subscriptions")
        for row in document["customers"]:
            recorded = ", ".join(f"{s['id']} {s['status']}" for s in row["subscriptions"])
            customer = row["stripe_customer_id"] + (" (deleted)" if row["deleted"] else "")
            table.add_row(row["organization_id"], customer, row["source"], recorded or "none known")
        out.print(table)
        for message in document["contradictions"]:
            out.print(Text.assemble(("look at this: ", "yellow"), message))

    _print(as_json, document, show)


# The gate -------------------------------------------------------------------------------------


@gate_app.command("list")
def gate_list(as_json: Json = False) -> None:
    """Show the days that wait because their counts are implausible, and why."""
    found = closed_gates(_open(load_settings()))
    document = {
        "gates": [
            {"day": gate.day.isoformat(), "snapshot_id": gate.snapshot_id,
             "findings": [asdict(finding) for finding in gate.findings]}
            for gate in found
        ]
    }  # fmt: skip

    def show() -> None:
        if not found:
            out.print("No day waits at the gate.")
            return
        table = Table("day", "organization", "what is implausible")
        for gate in found:
            for finding in gate.findings:
                table.add_row(
                    gate.day.isoformat(), finding.organization_id or "(all)", finding.text
                )
        out.print(table)
        out.print('If the counts are right: `billing gate approve --day DAY --reason "…"`.')

    _print(as_json, document, show)
    raise typer.Exit(1 if found else 0)


@gate_app.command("approve")
def gate_approve(
    day: Annotated[date, typer.Option(parser=_day, metavar="DAY", help="UTC usage day.")],
    reason: Annotated[str, typer.Option(help="Why these counts are right; kept on record.")],
    as_json: Json = False,
) -> None:
    """Let a day through the gate as it is counted now; the next run reports it."""
    context = _open(load_settings())
    findings = approve_gate(context, day, reason)
    context.ledger.write(record_run, _who(), reason.strip(), context.clock())
    document = {
        "day": day.isoformat(),
        "reason": reason.strip(),
        "approved": [asdict(finding) for finding in findings],
    }

    def show() -> None:
        for finding in findings:
            out.print(f"{finding.organization_id or '(all)'}: {finding.text}")
        out.print(f"Approved. `billing run --from {day} --to {day}` reports it.")

    _print(as_json, document, show)


# Adjustments ----------------------------------------------------------------------------------

Reason = Annotated[str, typer.Option(help="Why; kept on record.")]
AdjustmentIds = Annotated[list[str], typer.Argument(help="Ids, from `billing adjustments list`.")]


@adjustments_app.command("list")
def adjustments_list(as_json: Json = False) -> None:
    """Show the amounts that wait for a decision, and what was decided."""
    document = adjustments.list_adjustments(_open(load_settings()))

    def show() -> None:
        if not document["open"]:
            out.print("No amount waits for a decision.")
        else:
            table = Table("id", "day", "organization", "meter", "amount", "why it waits",
                          title="To be decided: `approve` or `dismiss`")  # fmt: skip
            table.columns[0].no_wrap = True  # to be copied
            for row in document["open"]:
                table.add_row(row["id"], row["day"], row["organization_id"], row["meter"],
                              f"{row['amount']:+d}", row["explanation"])  # fmt: skip
            out.print(table)
        if document["decided"]:
            table = Table("id", "day", "organization", "meter", "amount", "decision", "reported in",
                          "reason", title="Decided")  # fmt: skip
            table.columns[0].no_wrap = True
            for row in document["decided"]:
                reported = ", ".join(f"{e['day']} {e['amount']:+d}" for e in row["reported_in"])
                table.add_row(row["id"], row["day"], row["organization_id"], row["meter"],
                              f"{row['amount']:+d}", row["decision"], reported,
                              row["reason"])  # fmt: skip
            out.print(table)

    _print(as_json, document, show)
    raise typer.Exit(1 if document["open"] else 0)


@adjustments_app.command("show")
def adjustments_show(
    id: Annotated[str, typer.Argument(help="An id, from `billing adjustments list`.")],
    as_json: Json = False,
) -> None:
    """Show one amount, what was decided about it, and every event behind it."""
    document = adjustments.show_adjustment(_open(load_settings()), id)
    _print(as_json, document, lambda: out.print_json(data=document, default=str))


@adjustments_app.command("approve")
def adjustments_approve(ids: AdjustmentIds, reason: Reason, as_json: Json = False) -> None:
    """Report amounts in the organization's current period; the next run sends them."""
    _adjust(ids, adjustments.approve, reason, as_json)


@adjustments_app.command("dismiss")
def adjustments_dismiss(ids: AdjustmentIds, reason: Reason, as_json: Json = False) -> None:
    """Write amounts off."""
    _adjust(ids, adjustments.dismiss, reason, as_json)


def _adjust(
    ids: list[str], decide: Callable[[Context, str, str], Any], reason: str, as_json: bool
) -> None:
    context = _open(load_settings())
    decided = [decide(context, id, reason).as_json() for id in ids]
    context.ledger.write(record_run, _who(), reason.strip(), context.clock())

    def show() -> None:
        for row in decided:
            out.print(f"{row['id']}: {row['amount']:+d} {row['decision']}.")
            for segment in row["reported_in"]:
                out.print(
                    f"  {segment['amount']:+d} is reported in {segment['day']}: "
                    f"`billing run --from {segment['day']} --to {segment['day']}` once it is over"
                )

    _print(as_json, {"decided": decided}, show)


# What Stripe said ------------------------------------------------------------------------------


def _event_state(text: str) -> str:
    from billing_pipeline.stripe_events.inbox import EventState

    if text not in list(EventState):
        raise typer.BadParameter(f"{text!r} is not a state; there are {', '.join(EventState)}")
    return text


OfType = Annotated[str | None, typer.Option("--type", help="Such as invoice.created.")]
InState = Annotated[
    str | None,
    typer.Option(
        "--state", parser=_event_state, metavar="STATE", help="received, processed, ignored, failed"
    ),
]


@events_app.command("list")
def events_list(
    type: OfType = None,
    state: InState = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the events that Stripe sent, and what became of each."""
    from billing_pipeline.stripe_events.inbox import EventState

    inbox = _open(load_settings()).inbox
    wanted = None if state is None else EventState(state)
    document: dict[str, Any] = {
        "counts": inbox.counts(),
        "events": inbox.records(type=type, state=wanted, limit=limit),
    }

    def show() -> None:
        table = Table("created", "event", "type", "state", "tries", "why")
        table.columns[1].no_wrap = table.columns[2].no_wrap = True  # to be copied
        for row in document["events"]:
            table.add_row(row["created"][:19], row["id"], row["type"], row["state"],
                          str(row["attempts"]), row["last_error"] or "")  # fmt: skip
        out.print(table)
        out.print(", ".join(f"{number} {name}" for name, number in inbox.counts().items()))

    _print(as_json, document, show)


@events_app.command("show")
def events_show(
    event_id: Annotated[str, typer.Argument(help="Stripe's event id, evt_….")],
    as_json: Json = False,
) -> None:
    """Show one event as it came, and what became of it."""
    found = _open(load_settings()).inbox.records(ids=[event_id])
    if not found:
        raise typer.BadParameter(f"no event {event_id} was stored")
    _print(as_json, found[0], lambda: out.print_json(data=found[0], default=str))


@events_app.command("replay")
def events_replay(
    event_ids: Annotated[list[str] | None, typer.Argument(help="Events to apply again.")] = None,
    type: OfType = None,
    state: InState = None,
    as_json: Json = False,
) -> None:
    """Apply events again: those named, or all of a type or in a state."""
    from billing_pipeline.operations.bill import apply_events
    from billing_pipeline.stripe_events.inbox import EventState

    if not event_ids and type is None and state is None:
        raise typer.BadParameter("name events, or a --type or a --state")
    context = _open(load_settings())
    wanted = None if state is None else EventState(state)
    replayed = context.inbox.replay(event_ids or (), type, wanted)
    unknown = sorted(set(event_ids or ()) - {row["id"] for row in context.inbox.records(
        ids=event_ids or ("",), limit=len(event_ids or ()) + 1)})  # fmt: skip
    applied = apply_events(context)
    document = {"replayed": replayed, "unknown": unknown, **vars(applied)}

    def show() -> None:
        out.print(
            f"{len(replayed)} to be applied again: {len(applied.processed)} processed, "
            f"{len(applied.ignored)} ignored."
        )
        for id, error in (applied.postponed | applied.failed).items():
            out.print(Text.assemble((id, "red"), f": {error}"))
        for id in unknown:
            out.print(Text.assemble((id, "red"), ": no such event was stored"))

    _print(as_json, document, show)
    raise typer.Exit(1 if unknown or applied.postponed or applied.failed else 0)


# Sandbox, demo, UI, doctor ---------------------------------------------------------------------


@sandbox_app.command("serve")
def sandbox_serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 12111,
    seed: Annotated[int, typer.Option(help="Decides which requests the faults hit.")] = 0,
    faults: Annotated[
        str, typer.Option(help='Such as "rate_limit=0.1,cut_after=0.05,lag=2".')
    ] = "",
    now: Annotated[str | None, typer.Option(help="Start the clock here, ISO 8601.")] = None,
    state: Annotated[Path | None, typer.Option(help="Keep the state in this file.")] = None,
    account: Annotated[str, typer.Option(help="The account's id.")] = "acct_sandbox",
    webhook: Annotated[
        str | None, typer.Option(help="Deliver events to this URL, signed with --webhook-secret.")
    ] = None,
    webhook_secret: Annotated[
        str, typer.Option(help="Signs the deliveries; give it to the webhook handler too.")
    ] = "whsec_sandbox",
    as_json: Json = False,
) -> None:
    """Serve a local Stripe until interrupted. Its API key is any sk_test_… key."""
    from billing_pipeline.sandbox.app import make_app
    from billing_pipeline.sandbox.faults import Faults
    from billing_pipeline.sandbox.server import HOST, listen, make_sandbox, make_server
    from billing_pipeline.sandbox.webhooks import Endpoint

    try:
        parsed = Faults.parse(faults)
        start = datetime.fromisoformat(now) if now else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if start is not None and start.tzinfo is None:
        raise typer.BadParameter("--now needs a time zone, such as 2026-01-01T00:00:00Z")
    sandbox = make_sandbox(faults=parsed, seed=seed, now=start, state=state, account_id=account)
    if webhook is not None:
        sandbox.post.endpoint = Endpoint(webhook, webhook_secret, webhook_secret)
    try:
        listener = listen(port)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} cannot be used ({error.strerror}); choose another with --port, or 0"
        ) from None
    with listener:
        base = f"http://{HOST}:{listener.getsockname()[1]}"
        document = {"base": base, "account": account, "pid": os.getpid()}
        text = (
            f"A local Stripe at {base}; use it with\n"
            f"  export STRIPE_API_BASE={base}\n"
            "  export STRIPE_SECRET_KEY=sk_test_sandbox\n"
            f"and make customers with\n"
            f"  curl -u sk_test_sandbox: {base}/v1/customers -d name=acme"
        )
        _print(as_json, document, lambda: out.print(text, soft_wrap=True))
        sys.stdout.flush()
        make_server(make_app(sandbox), listener.getsockname()[1]).run([listener])


@sandbox_app.command("load-sample")
def sandbox_load_sample(
    to: Annotated[Path | None, typer.Option(help="Folder; default BILLING_READINGS_URI.")] = None,
    last_day: Annotated[
        date | None,
        typer.Option("--last-day", parser=_day, metavar="DAY", help="Default: yesterday."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write real sensor readings (Birmingham car parks) as daily Parquet, ending yesterday."""
    from billing_pipeline.sandbox.sample import load_sample

    folder = to or Path(load_settings().billing_readings_uri)
    end = last_day or utc_now().date() - timedelta(days=1)
    days, rows = load_sample(folder, end)
    document = {"folder": str(folder), "days": days, "rows": rows, "last_day": end.isoformat()}
    _print(as_json, document, lambda: out.print(
        f"{rows} readings of {days} days, up to {end}, in {folder}.\n"
        "Source: Birmingham City Council, Open Government Licence v3.0."
    ))  # fmt: skip


@app.command()
def demo(
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the earlier demo first.")] = False,
    as_json: Json = False,
) -> None:
    """Real readings to verified meter totals, on a local Stripe."""
    from billing_pipeline.sandbox.demo import run_demo, show_demo

    with _progress() as progress:
        document, code = run_demo(utc_now(), progress, fresh=fresh)
    _print(as_json, document, lambda: show_demo(out, document))
    raise typer.Exit(code)


@app.command()
def simulate(
    seeds: Annotated[str, typer.Option(help="One seed, or a range A..B, both included.")] = (
        "1..100"
    ),
    processes: Annotated[int, typer.Option(min=1, help="Worlds side by side.")] = (
        os.cpu_count() or 1
    ),
    as_json: Json = False,
) -> None:
    """Bill in simulated worlds full of faults and crashes; each seed is one, and repeatable."""
    from billing_pipeline.simulation.runner import shorten, simulate_all

    first, _, last = seeds.partition("..")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise typer.BadParameter(f"{seeds!r} is not a seed, nor a range such as 1..100")
    span = range(int(first), int(last or first) + 1)
    with _progress() as progress:
        verdicts = simulate_all(span, processes, lambda n: progress("simulating", n, len(span)))
    failed = [verdict for verdict in verdicts if verdict.complaints]
    document: dict[str, Any] = {
        "seeds": len(span),
        "crashes": sum(verdict.crashes for verdict in verdicts),
        "failed": [{"seed": v.seed, "complaints": v.complaints} for v in failed],
    }
    if failed:
        _, shortest = shorten(failed[0].seed)
        document["history"] = shortest.log
        document["complaints"] = shortest.complaints
        document["replay"] = f"billing simulate --seeds {failed[0].seed}"

    def show() -> None:
        out.print(
            f"{len(span)} worlds, {document['crashes']} crashes in them: {len(failed)} ended wrong."
        )
        if failed:
            out.print(f"Seeds: {', '.join(str(v.seed) for v in failed)}. The first, made short:")
            for line in document["history"]:
                out.print(f"  {line}")
            for complaint in document["complaints"]:
                out.print(Text.assemble(("  wrong: ", "bold red"), complaint))
            out.print(f"Replay it with `{document['replay']}`.")

    _print(as_json, document, show)
    raise typer.Exit(1 if failed else 0)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    as_json: Json = False,
) -> None:
    """Open the Dagster UI; without a Stripe key, on the demo's local Stripe if there was one."""
    from billing_pipeline.sandbox.demo import demo_environment

    environment = dict(os.environ)
    if Path("dagster.yaml").exists():
        environment.setdefault("DAGSTER_HOME", str(Path.cwd()))
    command = [
        sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml",
        "-h", "127.0.0.1", "-p", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    document = {"url": url, "pid": os.getpid()}
    with demo_environment(environment) as on_demo:
        where = " on the demo's local Stripe" if on_demo else ""
        _print(as_json, document, lambda: out.print(f"Dagster at {url}{where}; Ctrl-C ends it."))
        sys.stdout.flush()
        quiet = subprocess.DEVNULL if as_json else None
        dagster = subprocess.Popen(command, env=environment, stdout=quiet, start_new_session=True)

        def end(number: int, frame: object) -> None:
            """Dagster's daemon and servers end with this process, politely or not."""
            os.killpg(dagster.pid, signal.SIGKILL if number == signal.SIGALRM else signal.SIGTERM)
            signal.alarm(10 if number != signal.SIGALRM else 0)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, end)
        raise typer.Exit(dagster.wait())


@app.command()
def migrate(as_json: Json = False) -> None:
    """Bring the database's schema up to date, as every command does when it opens it."""
    settings = load_settings()
    _open(settings)  # opening it is all
    shown = settings.masked()["BILLING_DATABASE_URL"]
    _print(as_json, {"database": shown}, lambda: out.print(f"{shown} is up to date."))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Print the resolved configuration, secrets masked, and check each part."""
    from billing_pipeline.operations.doctor import examine

    settings = load_settings()
    checks = examine(settings)
    document = {
        "settings": settings.masked(),
        "checks": [vars(check) for check in checks],
    }

    def show() -> None:
        table = Table("variable", "value", title="Configuration")
        for name, value in settings.masked().items():
            table.add_row(name, value)
        out.print(table)
        for check in checks:
            mark = ("ok  ", "green") if check.ok else ("no  ", "red")
            out.print(Text.assemble(mark, f"{check.name}: {check.detail}"))

    _print(as_json, document, show)
    raise typer.Exit(max((check.exit_code for check in checks if not check.ok), default=0))


# Shared ----------------------------------------------------------------------------------------


def _who() -> str:
    """The person at the command line, as the operating system knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _open(settings: Settings) -> Context:
    context = Context.open(settings, f"cli-{utc_now():%Y%m%dT%H%M%S}-{os.getpid()}")
    _at_the_end.callback(context.close)
    return context


def _span(settings: Settings, first: date, last: date) -> list[date]:
    """The days from `first` to `last`, both included, if they can be usage days."""
    if first > last:
        raise typer.BadParameter(f"--from {first} lies after --to {last}")
    if first < settings.billing_start_day:
        raise typer.BadParameter(
            f"{first} lies before the first day, {settings.billing_start_day} (BILLING_START_DAY)"
        )
    if last > utc_now().date():
        raise typer.BadParameter(f"{last} lies in the future (UTC)")
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _print(as_json: bool, document: dict[str, Any], show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(document, ensure_ascii=False, default=str))
    else:
        show()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error when a person watches, silence otherwise."""
    if not err.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield update
