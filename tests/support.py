"""A small world for tests: readings on disk, a sandbox, and the pipeline between them."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import stripe
from sqlalchemy import create_engine, text

from billing_pipeline.ledger import queries
from billing_pipeline.ledger.queries import HoldRecord
from billing_pipeline.operations.bill import (
    ReportOutcome,
    apply_events,
    count_usage,
    report_days,
    verify_days,
)
from billing_pipeline.operations.context import Context, utc_now
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.app import Sandbox
from billing_pipeline.sandbox.events import notification
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.stripe_state import ReceivedEvent
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.catalogue import ensure_meters
from billing_pipeline.stripe_api.verification import VerificationReport
from billing_pipeline.stripe_events.applying import Applied
from billing_pipeline.usage.snapshot import take_snapshot
from webhook_handler.envelope import read
from webhook_handler.store import EventStore

SUM, LAST = "temperature_readings", "active_sensors"
"""The two meters."""

KEY = "sk_test_world_0123456789"
NOBODY_LISTENS = "http://127.0.0.1:9"
EPOCH = date(1970, 1, 1)

Totals = dict[tuple[str, str, date], int]


def yesterday() -> date:
    return utc_now().date() - timedelta(days=1)


class World:
    """Readings and Stripe. `due` computes the right bill without the pipeline."""

    def __init__(self, home: Path, sandbox: Sandbox, base: str) -> None:
        self.home = home
        self.sandbox = sandbox
        self.base = base
        self.offset = timedelta(0)
        self.customers: dict[str, str] = {}
        self.environment = {
            "BILLING_VERIFICATION_READS": "1000000",
            "STRIPE_SECRET_KEY": KEY,
            "STRIPE_API_BASE": base,
            "BILLING_READINGS_URI": str(home / "readings"),
            "BILLING_SNAPSHOTS_URI": str(home / "snapshots"),
            "BILLING_DATABASE_URL": f"sqlite:///{home}/billing.db",
            "BILLING_CUSTOMERS_FILE": str(home / "customers.csv"),
        }
        self._open: list[Context] = []
        (home / "readings").mkdir()
        self.write_customers({})

    def clock(self) -> datetime:
        return utc_now() + self.offset

    def advance(self, **time: float) -> None:
        """Move the pipeline's clock and Stripe's together."""
        step = timedelta(**time)
        self.offset += step
        self.sandbox.clock.offset += step.total_seconds()

    def context(self, run: str = "test") -> Context:
        context = Context.open(load_settings(), run, self.clock)
        self._open.append(context)
        return context

    def close(self) -> None:
        for context in self._open:
            context.ledger.engine.dispose()

    # Setting the scene -----------------------------------------------------------------------

    def stripe(self) -> stripe.StripeClient:
        return stripe.StripeClient(KEY, base_addresses={"api": self.base})

    def make_meters(self) -> None:
        context = self.context()
        asyncio.run(ensure_meters(context.gateway, context.settings.billing_meters, context.ledger))

    def meter_id(self, event_name: str = SUM) -> str:
        meters = self.sandbox.account.meters
        return next(id for id, meter in meters.items() if meter["event_name"] == event_name)

    def make_meter(self, event_name: str, formula: str, window: str | None = None) -> str:
        given: dict[str, Any] = {
            "event_name": event_name,
            "display_name": event_name,
            "default_aggregation": {"formula": formula},
        }
        if window:
            given["event_time_window"] = window
        return str(self.sandbox.account.make_meter(given)["id"])

    def make_customers(self, organizations: Iterable[str]) -> None:
        """Make Stripe customers and map them."""
        for organization in organizations:
            self.customers[organization] = str(
                self.sandbox.account.make_customer({"name": organization})["id"]
            )
        self.write_customers(self.customers)

    def write_customers(self, mapping: Mapping[str, str]) -> None:
        with (self.home / "customers.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["organization_id", "stripe_customer_id"])
            writer.writerows(mapping.items())

    def write_readings(
        self, day: date, sensors: Mapping[str, Mapping[str, int]], name: str = "readings.jsonl"
    ) -> None:
        """`sensors`: organization → sensor → number of readings, one a minute from midnight."""
        folder = self.home / "readings" / f"reading_date={day}"
        folder.mkdir(parents=True, exist_ok=True)
        midnight = datetime.fromtimestamp(day_start(day), UTC)
        if not any(n for counts in sensors.values() for n in counts.values()):
            (folder / name).unlink(missing_ok=True)
            return
        with (folder / name).open("w", encoding="utf-8") as file:
            for organization, counts in sensors.items():
                for sensor, number in counts.items():
                    for n in range(number):
                        at = (midnight + timedelta(minutes=n)).isoformat()
                        row = {"organization_id": organization, "sensor_id": sensor}
                        file.write(json.dumps({**row, "recorded_at": at, "value": n}) + "\n")

    # Acting ----------------------------------------------------------------------------------

    def bill(self, days: Iterable[date], context: Context | None = None) -> ReportOutcome:
        """Count, report and verify, without Dagster."""
        context = context or self.context()
        days = list(days)
        for day in days:
            count_usage(context, day)
        reporting = report_days(context, days)
        verify_days(context, days)
        return reporting

    def bill_yesterday(self, **readings: int) -> date:
        """Yesterday has so many readings of these organizations now: bill it; returns the day."""
        self.write_readings(yesterday(), {name: {"s": n} for name, n in readings.items()})
        self.bill([yesterday()])
        return yesterday()

    def snapshot(self, *days: date, context: Context | None = None) -> Context:
        """Count these days and do nothing else."""
        context = context or self.context()
        for day in days:
            take_snapshot(context.engine, context.readings, context.snapshots, day)
        return context

    def verify(self, days: Iterable[date]) -> VerificationReport:
        return verify_days(self.context(), list(days), everything=True)

    @contextmanager
    def faults(self, text: str) -> Iterator[None]:
        """Stripe has these faults, until the end of the block."""
        self.sandbox.faults = Faults.parse(text)
        try:
            yield
        finally:
            self.sandbox.faults = Faults()

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Contexts that are opened in this block cannot reach Stripe."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STRIPE_API_BASE", NOBODY_LISTENS)
            yield

    # Stripe events -----------------------------------------------------------------------------

    def emit(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """Let Stripe make a snapshot event; returns it."""
        return self.sandbox.account.outbox.emit(kind, content, self.sandbox.clock())

    def report_errors(
        self, code: str, *identifiers: str, unnamed: int = 0, event_name: str = SUM
    ) -> None:
        """Let Stripe report errors of a meter: of these events, and some without a name."""
        samples = [(identifier, "not counted") for identifier in identifiers]
        self.sandbox.account.outbox.report_errors(
            self.meter_id(event_name),
            {code: samples + [("unnamed", "")] * unnamed},
            self.sandbox.clock(),
        )

    def lose(self, value: int, event_name: str = SUM) -> ReceivedEvent:
        """Let Stripe lose the event with this value."""
        events = self.sandbox.account.events
        event = next(e for e in events if (e.value, e.event_name) == (value, event_name))
        event.counted = False
        return event

    def receive(self) -> list[str]:
        """Store all Stripe events so far, as the webhook handler does."""
        self.sandbox.tick()
        context = self.context()
        store = EventStore(context.inbox.engine)
        stored = []
        for event in self.sandbox.account.outbox.events:
            body = json.dumps(notification(event))
            if store.keep(read(body), body, self.clock(), "webhook"):
                stored.append(str(event["id"]))
        return stored

    def apply(self) -> Applied:
        """Receive and apply all Stripe events so far."""
        self.receive()
        return apply_events(self.context())

    def make_subscription(self, customer: str, **given: Any) -> dict[str, Any]:
        """A subscription to both meters; its period is a month from its start on."""
        items = []
        for meter in self.sandbox.account.meters.values():
            recurring = {"interval": "month", "meter": meter["id"]}
            price = {"currency": "usd", "unit_amount": "1", "recurring": recurring}
            items.append({"price": self.sandbox.billing.make_price(price)["id"]})
        return self.sandbox.billing.subscribe({"customer": customer, "items": items, **given})

    def end_period(self, subscription: dict[str, Any], end: int) -> None:
        """Let the current period of a subscription end at this instant."""
        for item in subscription["items"]["data"]:
            item["current_period_end"] = end
        self.sandbox.billing.change_subscription(
            subscription["id"], "customer.subscription.updated", items=subscription["items"]
        )

    def status(self, subscription: str, status: str) -> None:
        self.sandbox.billing.change_subscription(
            subscription, "customer.subscription.updated", status=status
        )

    # Looking ---------------------------------------------------------------------------------

    def billed(self) -> Totals:
        """What Stripe bills by customer, meter and day, without zeros."""
        return {
            (row["customer"], row["meter"], EPOCH + timedelta(days=row["day"])): row["value"]
            for row in self.sandbox.account.totals()
            if row["value"]
        }

    def due(self, usage: Mapping[date, Mapping[str, Mapping[str, int]]]) -> Totals:
        """What the readings written by `write_readings` prove, without zeros."""
        due: Totals = {}
        for day, organizations in usage.items():
            for organization, counts in organizations.items():
                customer = self.customers.get(organization)
                if customer is not None and any(counts.values()):
                    due[customer, "active_sensors", day] = sum(n > 0 for n in counts.values())
                    due[customer, "temperature_readings", day] = sum(counts.values())
        return due

    def states(self, *days: date) -> dict[str, int]:
        """How many events of these days are in each state, without zeros."""
        counts = self.context().ledger.read(queries.counts, days)
        return {state: number for state, number in counts.items() if number}

    def holds(self, *days: date) -> list[HoldRecord]:
        return self.context().ledger.read(queries.holds_of, days)

    def hold_reasons(self, *days: date) -> set[str]:
        return {hold.reason for hold in self.holds(*days)}

    def rejected(self, day: date) -> list[dict[str, Any]]:
        return self.context().ledger.read(queries.rejected, [day])


def new_database(maintenance: str, name: str) -> str:
    """Make an empty PostgreSQL database beside the maintenance one; returns its URL."""
    engine = create_engine(maintenance, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return maintenance.replace("/postgres?", f"/{name}?")


def eventually(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition is true; fail naming it if it never is."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
