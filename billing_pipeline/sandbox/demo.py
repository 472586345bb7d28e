"""`billing demo`: real readings become verified meter totals, on a local Stripe.

Everything lies under var/demo, but for Dagster's own records: those are the real instance's, so
that the UI shows the demo's days.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import stripe
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billing_pipeline.report import attention, exit_code, run_document
from billing_pipeline.sandbox.sample import load_sample, read_sample
from billing_pipeline.sandbox.server import make_sandbox, running
from billing_pipeline.settings import load_settings
from billing_pipeline.statement import Progress, Rooms
from billing_pipeline.stripe_meters import ensure_meters
from billing_pipeline.usage import load_snapshot

HOME = Path("var/demo")
KEY = "sk_test_demo"
DAYS = 30


def run_demo(now: datetime, progress: Progress, *, fresh: bool) -> tuple[dict[str, Any], int]:
    """Run the demo; returns what it came to and the exit code. A second time sends nothing."""
    import asyncio

    from billing_pipeline.defs import run_days

    if fresh:
        shutil.rmtree(HOME, ignore_errors=True)
    last_day = _sample(now)
    sandbox = make_sandbox(state=HOME / "stripe.jsonl", account_id="acct_demo")
    with running(sandbox) as base, _environment(os.environ, base):
        _make_customers(base)
        settings = load_settings()
        with Rooms.open(settings, "demo") as rooms:
            asyncio.run(ensure_meters(rooms.gateway, settings.billing_meters, rooms.ledger))
            first = last_day - timedelta(days=DAYS - 1)
            outcome, run_id, error = run_days(first, last_day, progress=progress)
            days = [first + timedelta(days=n) for n in range(DAYS)]
            document = run_document(rooms, days, outcome, run_id, error)
            document["organizations"] = _organizations(rooms, days)
        document["home"] = str(HOME)
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


def _make_customers(base: str) -> None:
    """One Stripe customer per organization of the sample, and the file that maps them."""
    client = stripe.StripeClient(KEY, base_addresses={"api": base})
    known = {c.name: c.id for c in client.v1.customers.list({"limit": 100}).data}
    organizations = sorted(read_sample()["organization_id"].unique())
    with (HOME / "customers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["organization_id", "stripe_customer_id"])
        for organization in organizations:
            customer = known.get(organization)
            if customer is None:
                customer = client.v1.customers.create({"name": organization}).id
            writer.writerow([organization, customer])


def _organizations(rooms: Rooms, days: list[date]) -> list[dict[str, Any]]:
    """Per organization, over all days: what was counted and what became of it."""
    rows: dict[str, dict[str, Any]] = {}
    for day in days:
        snapshot = load_snapshot(rooms.engine, rooms.snapshots, day)
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
    for organization, events, verified in rooms.inquiry.per_organization(days):
        rows[organization] |= {"events": events, "verified": verified}
    return [rows[name] for name in sorted(rows)]


def show_demo(console: Console, document: dict[str, Any]) -> None:
    """Print what a person wants to see, and where to look next."""
    table = Table(
        "organization", "days", "active sensors\n(last day)", "readings",
        "duplicates\nremoved", "events\nstated", "Stripe\nagrees",
        title=f"{document['from']} to {document['to']}: what was used, stated and verified",
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
    for panel in attention(document):
        console.print(panel)
    organization = document["organizations"][0]["organization_id"]
    home, last = document["home"], document["to"]
    console.print(
        "\nWhere to look next:\n"
        "  make demo   again: it sends nothing new, because Stripe already holds it\n"
        "  make ui     the same days in Dagster, to inspect, check and backfill\n"
        f"  {home}/snapshots/usage_day={last}/   the usage of the last day, and its inputs\n"
        "  one line of the bill, from Stripe's figure down to the files:\n"
        f"    BILLING_DATABASE_URL=sqlite:///{home}/billing.db "
        f"BILLING_SNAPSHOTS_URI={home}/snapshots \\\n"
        f"      .venv/bin/billing explain --organization {organization} --day {last}",
        soft_wrap=True,
    )
