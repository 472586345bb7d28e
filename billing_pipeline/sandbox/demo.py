"""`billing demo`: real readings become verified meter totals and an invoice, on a local Stripe.

The webhook handler runs beside it as a real process. The story: each organization checks out
(that is how we learn its customer), but for one a person imported a customer that does not exist;
Stripe takes its usage and reports later that it was not counted; once the mapping is fixed it is
sent again; then one organization's period ends, and its invoice becomes final.

Everything lies under var/demo, but for Dagster's own records: those are the real instance's, so
that the UI shows the demo's days.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import stripe
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billing_pipeline.cli.report import attention, exit_code, run_document
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.account import known_meters
from billing_pipeline.ledger.events import recorded_events
from billing_pipeline.operations.bill import (
    apply_events,
    verify_days,
)
from billing_pipeline.operations.context import (
    Actor,
    Context,
    Progress,
)
from billing_pipeline.operations.gate import approve_gate, closed_gates
from billing_pipeline.rules.model import SENT
from billing_pipeline.sandbox.app import Sandbox
from billing_pipeline.sandbox.billing import GRACE_SECONDS
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.sample import load_sample, read_sample
from billing_pipeline.sandbox.server import HOST, listen, make_sandbox, running
from billing_pipeline.sandbox.webhooks import Endpoint
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.catalogue import ensure_meters
from billing_pipeline.usage.snapshot import load_snapshot

HOME = Path("var/demo")
KEY = "sk_test_demo"
DAYS = 30

MISSPELT, INVOICED = "nia", "broad-street"
"""The organizations that the error report and the invoice are about."""

SECRETS = ("whsec_demo", "whsec_demo_thin")
MAIL_SECONDS = 60
"""How long the demo waits for its webhooks."""


def run_demo(now: datetime, progress: Progress, *, fresh: bool) -> tuple[dict[str, Any], int]:
    """Run the demo; returns what it came to and the exit code. A second time sends nothing."""
    import asyncio

    from billing_pipeline.defs import run_days

    if fresh:
        shutil.rmtree(HOME, ignore_errors=True)
    last_day = _sample(now)
    sandbox = make_sandbox(state=HOME / "stripe.jsonl", account_id="acct_demo")
    # Every webhook comes more than once and in disorder; usage is checked after it was taken.
    sandbox.faults = Faults(
        webhook_duplicates=0.5, webhook_delay=1.0, late_checks=1, report_after=0
    )
    with running(sandbox) as base, _environment(os.environ, base), _handler() as url:
        settings = load_settings()
        sandbox.post.endpoint = Endpoint(url, *SECRETS)
        with Context.open(settings, "demo") as context:
            asyncio.run(ensure_meters(context.gateway, settings.billing_meters, context.ledger))
            first = last_day - timedelta(days=DAYS - 1)
            days = [first + timedelta(days=n) for n in range(DAYS)]
            known = _check_out(sandbox, base, now)
            _write_customers({} if known else {MISSPELT: "cus_misspelt"})
            _await_mail(sandbox)
            outcome, run_id, error = run_days(
                first, last_day, Actor("billing demo"), progress=progress
            )
            story = {"webhooks": dict(sandbox.post.answers)}
            if not known:
                story |= _fix_customer(sandbox, context, days) | {"gates": _approve(context)}
                again, run_id, error = run_days(
                    first, last_day, Actor("billing demo"), progress=progress
                )
                again.reporting.sent += outcome.reporting.sent
                outcome = again
            story["invoice"] = _invoice(sandbox, context)
            document = run_document(context, days, outcome, run_id, error)
            document["organizations"] = _organizations(context, days)
            document["stripe_events"] = context.inbox.counts()
        document |= {"home": str(HOME), "story": story}
    return document, exit_code(document, outcome)


@contextmanager
def demo_environment(environment: MutableMapping[str, str]) -> Iterator[bool]:
    """Where there is no key but a demo was run: its local Stripe, while the block lasts."""
    if environment.get("STRIPE_SECRET_KEY") or not HOME.exists():
        yield False
        return
    sandbox = make_sandbox(state=HOME / "stripe.jsonl", account_id="acct_demo")
    with running(sandbox) as base, _environment(environment, base):
        yield True


@contextmanager
def _environment(environment: MutableMapping[str, str], base: str) -> Iterator[None]:
    """The demo's settings in an environment, and those of before again at the end."""
    demo = {
        "STRIPE_SECRET_KEY": KEY,
        "STRIPE_API_BASE": base,
        "STRIPE_METER_EVENTS_BASE": base,
        "BILLING_READINGS_URI": str(HOME / "readings"),
        "BILLING_SNAPSHOTS_URI": str(HOME / "snapshots"),
        "BILLING_DATABASE_URL": f"sqlite:///{HOME}/billing.db",
        "BILLING_CUSTOMERS_FILE": str(HOME / "customers.csv"),
        "BILLING_ACTIVE_WINDOW_DAYS": "1",
        "BILLING_METERS": "",
    }
    before = {name: environment.get(name) for name in demo}
    environment.update(demo)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value


def _sample(now: datetime) -> date:
    """Load the sample once; its days then stay where they are, so that a rerun changes nothing."""
    readings = HOME / "readings"
    found = sorted(path.name for path in readings.glob("reading_date=*"))
    if found:
        last_day = date.fromisoformat(found[-1].removeprefix("reading_date="))
        if (now.date() - last_day).days <= 3:
            return last_day
        shutil.rmtree(HOME)  # its days would soon be too old for Stripe
    last_day = now.date() - timedelta(days=1)
    load_sample(readings, last_day)
    return last_day


@contextmanager
def _handler() -> Iterator[str]:
    """The webhook handler as a process of its own; yields where it takes events."""
    with listen(0) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "STRIPE_WEBHOOK_SECRET": ",".join(SECRETS),
        "WEBHOOK_PORT": str(port),
    }
    command = [sys.executable, "-c", "from webhook_handler.server import main; main()"]
    with (HOME / "webhook-handler.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield f"http://{HOST}:{port}/stripe/webhook"
    finally:
        process.terminate()
        process.wait(30)


def _check_out(sandbox: Sandbox, base: str, now: datetime) -> bool:
    """Each organization checks out and subscribes; False if they did so before this demo.

    The period of the invoiced one ends a minute from now, those of the others much later.
    """
    if sandbox.billing.checkouts:
        return True
    client = stripe.StripeClient(KEY, base_addresses={"api": base})
    prices = []
    for meter in client.v1.billing.meters.list().data:
        recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
        given: Any = {"currency": "usd", "unit_amount": 1, "recurring": recurring}
        prices.append({"price": client.v1.prices.create(given).id})
    for organization in sorted(read_sample()["organization_id"].unique()):
        session = client.v1.checkout.sessions.create(
            {"mode": "setup", "client_reference_id": organization}
        )
        customer = sandbox.billing.complete_checkout(session.id)["customer"]
        start = now - timedelta(days=DAYS - 5)
        if organization == INVOICED:
            start = _a_month_before(now) + timedelta(minutes=1)
        wanted: Any = {
            "customer": customer, "items": prices, "backdate_start_date": int(start.timestamp()),
        }  # fmt: skip
        client.v1.subscriptions.create(wanted)
    return False


def _a_month_before(instant: datetime) -> datetime:
    """The start of a monthly period that ends at `instant`."""
    last_of_month_before = instant.replace(day=1) - timedelta(days=1)
    day = min(instant.day, last_of_month_before.day)
    return last_of_month_before.replace(day=day)


def _write_customers(mapping: dict[str, str]) -> None:
    with (HOME / "customers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["organization_id", "stripe_customer_id"])
        writer.writerows(mapping.items())


def _await_mail(sandbox: Sandbox) -> None:
    """Until all that Stripe has told is delivered. Raises TimeoutError."""
    give_up = time.monotonic() + MAIL_SECONDS
    while not sandbox.post.idle:
        if time.monotonic() > give_up:
            raise TimeoutError(f"webhooks were not delivered: see {HOME}/webhook-handler.log")
        time.sleep(0.05)


def _fix_customer(sandbox: Sandbox, context: Context, days: list[date]) -> dict[str, Any]:
    """Stripe reports what it did not count; the customer that checked out takes its place."""
    sandbox.tick()
    _await_mail(sandbox)
    apply_events(context)
    verify_days(context, days)
    known = context.customers.known(context.settings.billing_customers_file)
    story = {
        "error_reports": context.ledger.read(queries.open_reports, context.clock()),
        "rejected": len(context.ledger.read(queries.rejected, days)),
        "contradictions": known.contradictions(),
    }
    [customer] = known.learned[MISSPELT]
    _write_customers({MISSPELT: customer})
    return story


def _approve(context: Context) -> list[str]:
    """Days on which nothing came look like an outage, and wait; the sample has such days."""
    days = [gate.day for gate in closed_gates(context)]
    for day in days:
        approve_gate(context, day, "no readings were published for this day")
    return [day.isoformat() for day in days]


def _invoice(sandbox: Sandbox, context: Context) -> dict[str, Any]:
    """Let the invoiced organization's period end, and its draft become final; then compare."""
    customer = context.customers.mapping()[INVOICED]
    end = min(s["items"]["data"][0]["current_period_end"]
              for s in sandbox.billing.subscriptions.values())  # fmt: skip
    if not sandbox.billing.invoices:
        sandbox.clock.offset += max(0.0, end - sandbox.clock()) + 2 * GRACE_SECONDS
        sandbox.tick()
    _await_mail(sandbox)
    apply_events(context)
    found = [i for i in sandbox.billing.invoices.values() if i["customer"] == customer]
    invoice = min(found, key=lambda i: int(i["period_start"]))
    start, end = invoice["period_start"], invoice["period_end"]
    first, last = (datetime.fromtimestamp(at, UTC).date() for at in (start, end))
    span = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    recorded = context.ledger.read(recorded_events, span)
    rows = []
    for meter in context.ledger.read(known_meters, context.settings.billing_meters):
        events = sorted(
            (s.timestamp, s.revision, s.value)
            for day in span
            for cell, found in recorded[day].items()
            for s in found
            if cell.organization_id == INVOICED
            and cell.event_name == meter.event_name
            and s.state in SENT
            and start <= s.timestamp < end
        )
        ours = events[-1][2] if meter.replaces else sum(value for *_, value in events)
        billed = sandbox.billing.quantities()[customer, meter.event_name, start]
        rows.append({"meter": meter.event_name, "ledger": ours, "invoice": billed})
    return {
        "organization_id": INVOICED,
        "id": invoice["id"],
        "status": invoice["status"],
        "from": first.isoformat(),
        "to": last.isoformat(),
        "lines": rows,
    }


def _organizations(context: Context, days: list[date]) -> list[dict[str, Any]]:
    """Per organization, over all days: what was counted and what became of it."""
    rows: dict[str, dict[str, Any]] = {}
    for day in days:
        snapshot = load_snapshot(context.engine, context.snapshots, day)
        for usage in snapshot.organizations if snapshot else ():
            row = rows.setdefault(
                usage.organization_id,
                {"organization_id": usage.organization_id, "days": 0, "active_sensors": 0,
                 "readings": 0, "duplicates": 0, "events": 0, "verified": 0},
            )  # fmt: skip
            row["days"] += 1
            if day == days[-1]:
                row["active_sensors"] = usage.active_sensors
            row["readings"] += usage.reading_volume
            row["duplicates"] += usage.exact_duplicates + usage.conflicting_duplicates
    for organization, events, verified in context.ledger.read(queries.per_organization, days):
        rows[organization] |= {"events": events, "verified": verified}
    return [rows[name] for name in sorted(rows)]


def show_demo(console: Console, document: dict[str, Any]) -> None:
    """Print what a person wants to see, and where to look next."""
    table = Table(
        "organization", "days", "active sensors\n(last day)", "readings",
        "duplicates\nremoved", "events\nstated", "Stripe\nagrees",
        title=f"{document['from']} to {document['to']}: what was used, reported and verified",
    )  # fmt: skip
    table.columns[0].no_wrap = True
    for column in table.columns[1:6]:
        column.justify = "right"
    for row in document["organizations"]:
        agrees = row["events"] == row["verified"]
        table.add_row(
            row["organization_id"],
            *(str(row[name]) for name in
              ("days", "active_sensors", "readings", "duplicates", "events")),
            Text("yes", "green") if agrees else Text(f"{row['verified']} verified", "red"),
        )  # fmt: skip
    console.print(table)
    total = sum(row["readings"] for row in document["organizations"])
    removed = sum(row["duplicates"] for row in document["organizations"])
    console.print(
        f"{total} readings counted, {removed} duplicates removed, {document['sent']} events sent "
        f"in this run, {document['verified']} verified in all."
    )
    _show_story(console, document["story"], document["stripe_events"])
    for panel in attention(document):
        console.print(panel)
    organization = document["organizations"][0]["organization_id"]
    home, last = document["home"], document["to"]
    console.print(
        "\nWhere to look next:\n"
        "  make demo   again: it sends nothing new, because Stripe already has it\n"
        "  make ui     the same days in Dagster, to inspect, check and backfill\n"
        f"  {home}/snapshots/usage_day={last}/   the usage of the last day, and its inputs\n"
        "  one line of the bill, from Stripe's figure down to the files:\n"
        f"    BILLING_DATABASE_URL=sqlite:///{home}/billing.db "
        f"BILLING_SNAPSHOTS_URI={home}/snapshots \\\n"
        f"      .venv/bin/billing explain --organization {organization} --day {last}",
        soft_wrap=True,
    )


def _show_story(console: Console, story: dict[str, Any], events: dict[str, int]) -> None:
    """What Stripe said meanwhile, and what followed."""
    answers = sum(story["webhooks"].values())
    console.print(
        f"\nStripe's events came as webhooks, {answers} deliveries, some twice and in disorder: "
        f"{events['processed']} applied once each, {events['ignored']} of no concern here."
    )
    if "rejected" in story:
        codes = sorted({report["code"] for report in story["error_reports"]})
        console.print(
            f"Every customer was learned from a checkout. For {MISSPELT} somebody had imported "
            f"another one:\n  {'; '.join(story['contradictions'])}\n"
            f"Stripe took its usage and reported later that it was not counted ({', '.join(codes)}"
            f"): {story['rejected']} events rejected, and sent again to the right customer."
        )
    if story.get("gates"):
        console.print(
            f"Of {' and '.join(story['gates'])} nothing had come. That looks like an outage, and a "
            "zero would have\nbeen the last word of these days: the gate held them until they were "
            "approved, with a reason."
        )
    invoice = story["invoice"]
    lines = ", ".join(
        f"{line['meter']} {line['invoice']} (ledger {line['ledger']})" for line in invoice["lines"]
    )
    console.print(
        f"The period of {invoice['organization_id']} ended: its invoice {invoice['id']} is "
        f"{invoice['status']} and bills {lines}. What comes later for it is held: period closed."
    )
