"""`billing demo`: real readings become verified meter totals and an invoice, on a local Stripe.

The webhook handler runs beside it as a real process. The story:

1. Each organization checks out and subscribes: that is how we learn its customer. For one of them
   somebody has imported a customer that does not exist.
2. The last 30 days are billed. Stripe accepts the usage of the wrong customer and reports later
   that it did not count it. Days without readings wait at the gate.
3. The mapping is fixed, the days without readings are approved, and the days are billed again.
4. One organization's billing period ends, and its invoice becomes final.

No step depends on the speed of the machine. Step 1 is prepared beside `HOME` and renamed at its
end. Each later step asks Stripe and the ledger whether it was done, so that a demo that was killed
goes on where it was. Stripe's clock is real until step 4 moves it past the end of the period.

Everything lies under var/demo, except Dagster's own records: those are in the real instance, so
that the UI shows the demo's days.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stripe
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billing_pipeline.cli.report import attention, exit_code, run_document
from billing_pipeline.errors import BillingError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.account import known_meters
from billing_pipeline.ledger.events import mark_interrupted, recorded_events
from billing_pipeline.operations.bill import apply_events, verify_days
from billing_pipeline.operations.context import Actor, Context, Progress
from billing_pipeline.operations.gate import approve_gate, closed_gates
from billing_pipeline.rules.model import SENT
from billing_pipeline.rules.timestamps import day_of, day_start
from billing_pipeline.sandbox.app import Sandbox
from billing_pipeline.sandbox.billing import GRACE_SECONDS
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.sample import load_sample, read_sample
from billing_pipeline.sandbox.server import HOST, listen, make_sandbox, running
from billing_pipeline.sandbox.webhooks import Endpoint
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.catalogue import ensure_meters
from billing_pipeline.stripe_events.inbox import EventState
from billing_pipeline.usage.snapshot import load_snapshot

if TYPE_CHECKING:
    from billing_pipeline.defs.resources import RunOutcome

HOME = Path("var/demo")
DRAFT, OLD = HOME.with_name("demo.draft"), HOME.with_name("demo.old")
"""The next demo while it is prepared, and the last one while it is deleted."""
LAST_DAY_FILE = "last-day.txt"

ACCOUNT, KEY = "acct_demo", "sk_test_demo"
SECRETS = ("whsec_demo", "whsec_demo_thin")

DAYS = 30
KEPT_DAYS = 3
"""The demo's days stay where they are for so long, so that a rerun changes nothing. Later they
would be too old for Stripe, and the demo is prepared again."""

CYCLE = {"interval": "week", "interval_count": 5}
"""From the first day on this ends later than the demo is kept: the real clock never reaches it."""

MISSPELT, INVOICED = "nia", "broad-street"
"""The organizations that the error report and the invoice are about."""

PATIENCE_SECONDS = 600
"""How long the demo waits for anything. A busy machine is slow, not broken."""


def run_demo(now: datetime, progress: Progress, *, fresh: bool) -> tuple[dict[str, Any], int]:
    """Run the demo; returns its document and the exit code. A second run sends nothing."""
    if fresh:
        _remove(HOME)
    last_day = _prepare(now)
    sandbox = _sandbox(HOME)
    # Webhooks come more than once and in any order. Usage is checked after it was accepted.
    sandbox.faults = Faults(
        webhook_duplicates=0.5, webhook_delay=1.0, late_checks=1, report_after=0
    )
    with (
        running(sandbox) as base,
        _environment(os.environ, base, HOME),
        _handler() as handler,
        Context.open(load_settings(), "demo") as context,
    ):
        sandbox.webhooks.endpoint = Endpoint(handler.url, *SECRETS)
        return _Demo(sandbox, base, handler, context, last_day, progress).run()


@contextmanager
def demo_environment(environment: MutableMapping[str, str]) -> Iterator[bool]:
    """Without a key but with an earlier demo: its local Stripe, while the block lasts."""
    if environment.get("STRIPE_SECRET_KEY") or not HOME.exists():
        yield False
        return
    with running(_sandbox(HOME)) as base, _environment(environment, base, HOME):
        yield True


# Preparing -------------------------------------------------------------------------------------


def _prepare(now: datetime) -> date:
    """Readings, meters, subscriptions and the wrong mapping: all of it, or nothing. Once.

    Returns the demo's last day.
    """
    with_date = HOME / LAST_DAY_FILE
    if with_date.exists():
        last_day = date.fromisoformat(with_date.read_text("utf-8"))
        if last_day < now.date() <= last_day + timedelta(days=KEPT_DAYS):
            return last_day
    _remove(HOME)
    _remove(DRAFT)
    last_day = now.date() - timedelta(days=1)
    load_sample(DRAFT / "readings", last_day)
    with running(_sandbox(DRAFT)) as base, _environment(os.environ, base, DRAFT):
        with Context.open(load_settings(), "demo") as context:
            asyncio.run(
                ensure_meters(context.gateway, context.settings.billing_meters, context.ledger)
            )
        _check_out(base, last_day - timedelta(days=DAYS - 1))
    _write_customers(DRAFT, {MISSPELT: "cus_misspelt"})
    (DRAFT / LAST_DAY_FILE).write_text(last_day.isoformat(), "utf-8")
    DRAFT.replace(HOME)
    return last_day


def _remove(folder: Path) -> None:
    """Delete a folder. Killed meanwhile, it is still gone, and its remains go next time."""
    shutil.rmtree(OLD, ignore_errors=True)
    if folder.exists():
        folder.replace(OLD)
        shutil.rmtree(OLD)


def _sandbox(home: Path) -> Sandbox:
    return make_sandbox(state=home / "stripe.jsonl", account_id=ACCOUNT)


@contextmanager
def _environment(environment: MutableMapping[str, str], base: str, home: Path) -> Iterator[None]:
    """The demo's settings in an environment; those of before return at the end."""
    demo = {
        "STRIPE_SECRET_KEY": KEY,
        "STRIPE_API_BASE": base,
        "STRIPE_METER_EVENTS_BASE": base,
        "BILLING_READINGS_URI": str(home / "readings"),
        "BILLING_SNAPSHOTS_URI": str(home / "snapshots"),
        "BILLING_DATABASE_URL": f"sqlite:///{home}/billing.db",
        "BILLING_CUSTOMERS_FILE": str(home / "customers.csv"),
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


def _check_out(base: str, first: date) -> None:
    """Each organization checks out and subscribes.

    The period of the invoiced one begins with the first day, those of the others inside a day.
    """
    client = stripe.StripeClient(KEY, base_addresses={"api": base})
    prices = []
    for meter in client.v1.billing.meters.list().data:
        recurring = {**CYCLE, "usage_type": "metered", "meter": meter.id}
        given: Any = {"currency": "usd", "unit_amount": 1, "recurring": recurring}
        prices.append({"price": client.v1.prices.create(given).id})
    for organization in sorted(read_sample()["organization_id"].unique()):
        session = client.v1.checkout.sessions.create(
            {"mode": "setup", "client_reference_id": organization}
        )
        completed = _behind_the_scenes(base, complete_checkout=session.id)["checkout"]
        start = day_start(first) + (0 if organization == INVOICED else 132 * 3600)
        wanted: Any = {
            "customer": completed["customer"], "items": prices, "backdate_start_date": start,
        }  # fmt: skip
        client.v1.subscriptions.create(wanted)


def _behind_the_scenes(base: str, **given: Any) -> dict[str, Any]:
    """Have the sandbox do what no API call does. It happens in the server's own thread."""
    request = urllib.request.Request(f"{base}/_sandbox", json.dumps(given).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        answered: dict[str, Any] = json.load(answer)
    return answered


def _write_customers(home: Path, mapping: dict[str, str]) -> None:
    draft = home / "customers.csv.draft"
    with draft.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["organization_id", "stripe_customer_id"])
        writer.writerows(mapping.items())
    draft.replace(home / "customers.csv")


# The webhook handler ---------------------------------------------------------------------------

_HANDLER = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from webhook_handler.server import main
main()
"""
"""The handler ends with the demo, however that ends: its standard input is closed then."""


@dataclass
class _Handler:
    base: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"{self.base}/stripe/webhook"

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}/healthz", timeout=PATIENCE_SECONDS):
                return True
        except OSError:  # not yet, or no more
            return False


@contextmanager
def _handler() -> Iterator[_Handler]:
    """The webhook handler as a process of its own."""
    handler = _start_handler()
    try:
        yield handler
    finally:
        handler.process.terminate()
        try:
            handler.process.wait(60)
        except subprocess.TimeoutExpired:
            handler.process.kill()
            handler.process.wait()


def _start_handler(attempts: int = 5) -> _Handler:
    """Start it on a free port; on another one if somebody else took the port meanwhile."""
    with listen(0) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "STRIPE_WEBHOOK_SECRET": ",".join(SECRETS),
        "WEBHOOK_PORT": str(port),
    }
    with (HOME / "webhook-handler.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _HANDLER],
            env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip
    handler = _Handler(f"http://{HOST}:{port}", process)
    _wait_until(lambda: handler.has_ended or handler.answers(), "the webhook handler answers")
    if handler.has_ended and attempts > 1:
        return _start_handler(attempts - 1)
    return handler


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise BillingError(
                f"The demo waited {PATIENCE_SECONDS} seconds until {what}.",
                f"See {HOME}/webhook-handler.log, and run it again: it goes on where it was.",
            )
        time.sleep(0.05)


# The story -------------------------------------------------------------------------------------


@dataclass
class _Demo:
    """A demo whose Stripe and webhook handler run."""

    sandbox: Sandbox
    base: str
    handler: _Handler
    context: Context
    last_day: date
    progress: Progress

    @property
    def days(self) -> list[date]:
        return [self.last_day - timedelta(days=DAYS - 1 - n) for n in range(DAYS)]

    def run(self) -> tuple[dict[str, Any], int]:
        """Every step that was not done yet."""
        # An error report waits for an event that is being sent: not for one that a killed run sent.
        with self.context.ledger.delivering():
            self.context.ledger.write(mark_interrupted, self.context.clock())
        self._receive_events()
        is_over = self._final_invoice() is not None
        outcome, run_id, error = self._bill()
        story: dict[str, Any] = {"webhooks": dict(self.sandbox.webhooks.answers)}
        if not is_over and (changes := self._fix_customer() | self._approve()):
            sent = outcome.reporting.sent
            outcome, run_id, error = self._bill()
            outcome.reporting.sent += sent
            story |= changes
        if error is None and outcome.reporting.stopped is None:
            self._end_period()
            story["invoice"] = self._compare_invoice()
        document = run_document(self.context, self.days, outcome, run_id, error)
        document["organizations"] = _organizations(self.context, self.days)
        document["stripe_events"] = self.context.inbox.counts()
        document |= {"home": str(HOME), "story": story}
        return document, exit_code(document, outcome)

    def _bill(self) -> tuple[RunOutcome, str, str | None]:
        from billing_pipeline.defs import run_days

        by = Actor("billing demo")
        return run_days(self.days[0], self.last_day, by, progress=self.progress)

    def _receive_events(self) -> None:
        """Until every Stripe event is delivered, as often as it is to be, and applied."""
        webhooks = self.sandbox.webhooks

        def delivered() -> bool:
            if self.handler.has_ended:
                log = f"{HOME}/webhook-handler.log"
                raise BillingError(f"The webhook handler has ended: see {log}.")
            every = {event["id"] for event in list(webhooks.outbox.events)}
            return webhooks.delivered >= every and webhooks.idle

        def applied() -> bool:
            apply_events(self.context)
            return not self.context.inbox.counts()[EventState.RECEIVED]

        _wait_until(delivered, "Stripe's webhooks are delivered")
        _wait_until(applied, "Stripe's events are applied")

    def _fix_customer(self) -> dict[str, Any]:
        """Stripe reports what it did not count; the customer that checked out takes its place."""
        _behind_the_scenes(self.base)  # time passes there: the error report is due
        self._receive_events()
        context = self.context
        known = context.customers.known(context.settings.billing_customers_file)
        if not (contradictions := known.contradictions()):
            return {}
        verify_days(context, self.days)
        changes = {
            "error_reports": context.ledger.read(queries.open_reports, context.clock()),
            "rejected": len(context.ledger.read(queries.rejected, self.days)),
            "contradictions": contradictions,
        }
        [customer] = known.learned[MISSPELT]
        _write_customers(HOME, {MISSPELT: customer})
        return changes

    def _approve(self) -> dict[str, Any]:
        """Days without readings look like an outage, and wait; the sample has such days."""
        days = [gate.day for gate in closed_gates(self.context)]
        for day in days:
            approve_gate(self.context, day, "no readings were published for this day")
        return {"gates": [day.isoformat() for day in days]} if days else {}

    def _end_period(self) -> None:
        """Move Stripe's clock past the end of the invoiced organization's period, once.

        Its draft becomes final meanwhile.
        """
        if self._final_invoice() is None:
            [subscription] = [
                s for s in self.sandbox.billing.subscriptions.values()
                if s["customer"] == self._invoiced_customer
            ]  # fmt: skip
            end = subscription["items"]["data"][0]["current_period_end"]
            seconds = end + GRACE_SECONDS + 60 - self.sandbox.clock()
            _behind_the_scenes(self.base, advance=seconds)
        self._receive_events()

    @property
    def _invoiced_customer(self) -> str:
        return self.context.customers.mapping()[INVOICED]

    def _final_invoice(self) -> dict[str, Any] | None:
        """The invoice of the invoiced organization's first period, once it is paid."""
        invoices = [
            invoice
            for invoice in list(self.sandbox.billing.invoices.values())
            if invoice["customer"] == self._invoiced_customer and invoice["status"] == "paid"
        ]
        return min(invoices, key=lambda i: int(i["period_start"]), default=None)

    def _compare_invoice(self) -> dict[str, Any]:
        """What the invoice bills, and what the ledger reported for its period."""
        invoice = self._final_invoice()
        assert invoice is not None
        start, end = invoice["period_start"], invoice["period_end"]
        recorded = self.context.ledger.read(recorded_events, self.days)
        billed = {
            line["metadata"]["event_name"]: line["quantity"] for line in invoice["lines"]["data"]
        }
        rows = []
        for meter in self.context.ledger.read(known_meters, self.context.settings.billing_meters):
            values = [
                event.value
                for cells in recorded.values()
                for cell, events in cells.items()
                if (cell.organization_id, cell.event_name) == (INVOICED, meter.event_name)
                for event in sorted(events, key=lambda e: (e.timestamp, e.revision))
                if event.state in SENT and start <= event.timestamp < end
            ]
            reported = sum(values[-1:] if meter.replaces else values)
            row = {"meter": meter.event_name, "ledger": reported}
            rows.append({**row, "invoice": billed[meter.event_name]})
        return {
            "organization_id": INVOICED,
            "id": invoice["id"],
            "status": invoice["status"],
            "from": day_of(start).isoformat(),
            "to": day_of(end - 1).isoformat(),
            "lines": rows,
        }


# Showing ---------------------------------------------------------------------------------------


def _organizations(context: Context, days: list[date]) -> list[dict[str, Any]]:
    """Per organization, over all days: what was counted, and how much of it is verified."""
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
        "duplicates\nremoved", "events\nreported", "Stripe\nagrees",
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
    """What happened at Stripe meanwhile, and what followed."""
    deliveries = sum(story["webhooks"].values())
    console.print(
        f"\nStripe's events came as webhooks: {deliveries} deliveries, some twice and in any "
        f"order. {events['processed']} were applied once each, {events['ignored']} do not concern "
        "billing."
    )
    if "rejected" in story:
        codes = sorted({report["code"] for report in story["error_reports"]})
        console.print(
            f"Every customer was learned from a checkout. For {MISSPELT} somebody had imported "
            f"another one:\n  {'; '.join(story['contradictions'])}\n"
            f"Stripe accepted its usage and reported later that it did not count it "
            f"({', '.join(codes)}): {story['rejected']} events were rejected, and sent again for "
            "the right customer."
        )
    if "gates" in story:
        console.print(
            f"{' and '.join(story['gates'])} had no readings. That looks like an outage, so the "
            "gate kept these days on hold until they were approved, with a reason."
        )
    if "invoice" not in story:
        return
    invoice = story["invoice"]
    lines = ", ".join(
        f"{line['meter']} {line['invoice']} (ledger {line['ledger']})" for line in invoice["lines"]
    )
    console.print(
        f"The billing period of {invoice['organization_id']} has ended at Stripe: its invoice "
        f"{invoice['id']} is {invoice['status']} and bills {lines}. Usage that comes later for "
        "this period goes on hold: period closed."
    )
