"""The simulated world: readings, organizations, customers, Stripe, and the steps of histories.

Each step is a method that takes its own `Random`. A history can therefore lose some of its steps,
and the others stay the same.
"""

from __future__ import annotations

import csv
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine as Database
from sqlalchemy import event

from billing_pipeline.customers.directory import CustomerDirectory
from billing_pipeline.database import open_database
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.adjustments import decided_adjustments
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.operations import adjust as adjustments
from billing_pipeline.operations import gate
from billing_pipeline.operations.bill import apply_events, mark_counted, report_days, verify_days
from billing_pipeline.operations.context import Actor, Context
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.periods import closing_days
from billing_pipeline.operations.undo import undo_run
from billing_pipeline.rules.gate import Gates
from billing_pipeline.rules.planning import PlanOptions
from billing_pipeline.rules.timestamps import day_start, is_over
from billing_pipeline.sandbox.app import Clock, Sandbox, make_app
from billing_pipeline.sandbox.billing import Billing
from billing_pipeline.sandbox.events import notification
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.stripe_state import Account
from billing_pipeline.sandbox.webhooks import WebhookDelivery
from billing_pipeline.settings import Settings
from billing_pipeline.simulation.crash_points import Crash, CrashPoints
from billing_pipeline.simulation.readings import Readings, Row
from billing_pipeline.simulation.transport import InProcessGateway
from billing_pipeline.stripe_events.backstop import fetch_missed
from billing_pipeline.stripe_events.inbox import Inbox
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.sources.folders import Folder
from webhook_handler.envelope import read
from webhook_handler.store import EventStore

BEGUN = datetime(2026, 3, 4, 9, 30, tzinfo=UTC)
FIRST_DAY = date(2026, 3, 1)
ORGANIZATIONS = ("ash", "birch", "cedar")
SENSORS = ("s1", "s2", "s3")
METERS = (("active_sensors", "last"), ("temperature_readings", "sum"))
STRICT = Gates(least_days=2, least_readings=2, whole_low=0.3, organization_low=0.3)
"""Gates that close on the few readings of these worlds; the default ones never do."""

PERIOD_DAYS = 3
"""Days of a billing period."""

UNKNOWN_STATUS = "status_of_tomorrow"
"""A status of subscriptions that the pipeline does not know."""

BASE = "http://stripe.invalid"


class World:
    """A world in a folder of its own. `template` is a database with its schema."""

    def __init__(self, folder: Path, template: Path, seed: int) -> None:
        self.folder = folder
        self.now = BEGUN.timestamp()
        self.readings = Readings()
        self.crash_points = CrashPoints()
        self.mapping: dict[str, str] = {}
        self.ever_mapped: set[tuple[str, str]] = set()
        self.received: set[str] = set()
        self.log: list[str] = []
        self.complaints: list[str] = []
        """What the oracle found wrong before the end."""
        self.crashes = 0
        self.chance = Random(seed)
        self.runs: list[str] = []
        self.verdicts: dict[str, bool] = {}
        """Decisions about usage of closed periods: whether each adjustment was approved."""
        # Stripe's clock may differ from the pipeline's. It never goes back.
        clock = Clock(lambda: self.now, Random(seed).choice([0.0, 0.0, -120.0, 120.0]))
        account = Account(clock)
        self.sandbox = Sandbox(
            account, clock, Faults(), Billing(account), WebhookDelivery(account.outbox, clock), seed
        )
        self.app = make_app(self.sandbox)
        shutil.copy(template, folder / "billing.db")
        self.settings = Settings(
            stripe_secret_key=SecretStr("sk_test_simulation"),
            stripe_api_base=BASE,
            billing_database_url=SecretStr(f"sqlite:///{folder}/billing.db"),
            billing_start_day=FIRST_DAY,
            billing_readings_uri=str(folder),
            billing_snapshots_uri=str(folder),
            billing_memory_limit="1GB",
            billing_meters=Settings.model_fields["billing_meters"].default,
            billing_verification_reads=10**6,
            billing_gates=STRICT if Random(seed).random() < 0.2 else Gates(),
        )
        self.database = open_database(f"sqlite:///{folder}/billing.db")
        self._watch(self.database)
        for name, formula in METERS:
            self.account.make_meter(
                {"event_name": name, "display_name": name,
                 "default_aggregation": {"formula": formula}}
            )  # fmt: skip
        self.price = [self._price(meter) for meter in self.account.meters]
        for organization in ORGANIZATIONS[:2]:
            self.mapping[organization] = self.account.make_customer({})["id"]
        self._import()
        if Random(seed).random() < 0.6:
            for customer in sorted(self.account.customers):
                self._subscribe(customer, 2 * 86_400)

    # Access ----------------------------------------------------------------------------------

    @property
    def account(self) -> Account:
        """Stripe's own state."""
        return self.sandbox.account

    def clock(self) -> datetime:
        """The pipeline's clock. Stripe's differs by the sandbox's offset."""
        return datetime.fromtimestamp(self.now, UTC)

    def context(self, run: str) -> Context:
        """The context in which the production code runs in this world."""
        ledger = Ledger(self.database, run)
        ledger.delivery_wait_seconds = 0.0
        here = Folder(str(self.folder))
        return Context(
            self.settings,
            Engine("1GB", self.clock),
            here,
            here,
            self.readings,
            ledger,
            CustomerDirectory(self.database),
            Inbox(self.database),
            InProcessGateway(self.settings, self.app, self.crash_points),
            self.clock,
        )

    def days(self) -> list[date]:
        """Every day that is over."""
        last = self.clock().date()
        return [
            FIRST_DAY + timedelta(days=n)
            for n in range((last - FIRST_DAY).days + 1)
            if is_over(FIRST_DAY + timedelta(days=n), self.clock())
        ]

    def close(self) -> None:
        """Close the database."""
        self.database.dispose()

    def _watch(self, database: Database) -> None:
        @event.listens_for(database, "begin")
        def _begin(_connection: Any) -> None:
            self.crash_points.reach()

        @event.listens_for(database, "commit")
        def _commit(_connection: Any) -> None:
            self.crash_points.reach()

    def _price(self, meter_id: str) -> str:
        recurring = {"interval": "day", "interval_count": str(PERIOD_DAYS), "meter": meter_id}
        return str(
            self.sandbox.billing.make_price({"currency": "usd", "recurring": recurring})["id"]
        )

    # Readings --------------------------------------------------------------------------------

    def add_readings(self, chance: Random) -> None:
        """Readings of some days arrive: new, late, repeated and conflicting ones."""
        for _ in range(chance.randint(1, 3)):
            day = self._a_day(chance)
            organization = chance.choice(ORGANIZATIONS)
            for _ in range(chance.randint(1, 6)):
                at = day_start(day) + chance.choice([0, 86_399, chance.randrange(86_400)])
                row = Row(organization, chance.choice(SENSORS), at, chance.randint(0, 1))
                self.readings.rows[day] += [row] * chance.choice([1, 1, 2])
            self.log.append(f"readings of {organization} on {day}")

    def remove_readings(self, chance: Random) -> None:
        """Some or all rows of a day are removed."""
        day = self._a_day(chance)
        rows = self.readings.rows[day]
        kept = chance.choice([0.0, 0.5, 0.8])
        self.readings.rows[day] = [row for row in rows if chance.random() < kept]
        self.log.append(f"{len(rows) - len(self.readings.rows[day])} rows of {day} removed")

    def _a_day(self, chance: Random) -> date:
        last = self.clock().date()
        return FIRST_DAY + timedelta(days=chance.randint(0, (last - FIRST_DAY).days))

    # People and customers --------------------------------------------------------------------

    def remap(self, chance: Random) -> None:
        """A person maps an organization to a new, an existing or an unknown customer."""
        organization = chance.choice(ORGANIZATIONS)
        known = sorted(self.account.customers)
        kind = chance.choice(["new", "new", "old", "unknown"])
        if kind == "unknown":
            customer = f"cus_unknown_{organization}"
        elif kind == "old" and known:
            customer = chance.choice(known)
        else:
            customer = str(self.account.make_customer({})["id"])
        self.mapping[organization] = customer
        self._import()
        self.log.append(f"{organization} is mapped to {customer}")

    def _import(self) -> None:
        path = self.folder / "customers.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["organization_id", "stripe_customer_id"])
            writer.writerows(self.mapping.items())
        self.crash_points.disarm()
        CustomerDirectory(self.database).import_file(path, self.clock())
        self.ever_mapped |= set(self.mapping.items())

    def check_out(self, chance: Random) -> None:
        """An organization checks out as a new customer."""
        organization = chance.choice(ORGANIZATIONS)
        customer = str(self.account.make_customer({})["id"])
        session = {"id": "cs", "customer": customer, "client_reference_id": organization}
        self.account.outbox.emit("checkout.session.completed", session, self.sandbox.clock())
        self.ever_mapped.add((organization, customer))
        self.log.append(f"{organization} checks out as {customer}")

    def subscribe(self, chance: Random) -> None:
        """A customer subscribes, from now or from an earlier instant."""
        customers = sorted(self.account.customers)
        if customers:
            self._subscribe(chance.choice(customers), chance.choice([0, 3600, 2 * 86_400]))
            self.log.append("a customer subscribes")

    def _subscribe(self, customer: str, ago: int) -> None:
        self.sandbox.billing.subscribe(
            {"customer": customer,
             "items": [{"price": price} for price in self.price],
             "backdate_start_date": str(int(self.sandbox.clock() - ago))}
        )  # fmt: skip

    def change_subscription(self, chance: Random) -> None:
        """A subscription changes its status, is cancelled, or is set to end with its period."""
        billing = self.sandbox.billing
        # One that was paused when its period ended stays paused: the sandbox cannot resume it.
        now = self.sandbox.clock()
        live = [
            s
            for s in billing.subscriptions.values()
            if s["status"] != "canceled" and s["items"]["data"][0]["current_period_end"] > now
        ]
        if not live:
            return
        id = chance.choice(live)["id"]
        change = chance.choice(["paused", "active", "past_due", UNKNOWN_STATUS, "cancel", "end"])
        if change == "cancel":
            billing.cancel(id, {"invoice_now": chance.choice(["true", "false"])})
        elif change == "end":
            billing.update_subscription(id, {"cancel_at_period_end": "true"})
        else:
            billing.change_subscription(id, "customer.subscription.updated", status=change)
        self.log.append(f"{id}: {change}")

    def delete_customer(self, chance: Random) -> None:
        """A customer is deleted, and its subscriptions are cancelled."""
        customers = sorted(self.account.customers)
        if customers and chance.random() < 0.3:
            customer = chance.choice(customers)
            for subscription in self.sandbox.billing.subscriptions.values():
                if subscription["customer"] == customer and subscription["status"] != "canceled":
                    self.sandbox.billing.cancel(subscription["id"], {})
            self.account.delete_customer(customer)
            self.log.append(f"{customer} is deleted")

    def decide(self, chance: Random) -> None:
        """A person approves or dismisses an adjustment. The process may die meanwhile."""
        self.crash_points.disarm()
        context = self.context("person")
        waiting = adjustments.open_adjustments(context)
        if not waiting:
            return
        adjustment, approved = chance.choice(waiting), chance.random() < 0.7
        decide = adjustments.approve if approved else adjustments.dismiss
        before = self.crashes
        if chance.random() < 0.2:
            self.crash_points.arm(chance.randint(1, 12))
        with self._process():
            decide(context, adjustment.id, "simulated")
        self.crash_points.disarm()
        if self.context("person").ledger.read(decided_adjustments, id=adjustment.id):
            self.verdicts[adjustment.id] = approved
        verdict = "approved" if approved else "dismissed"
        died = ": dies" if self.crashes > before else ""
        self.log.append(f"{adjustment.amount:+} of {adjustment.cell}: {verdict}{died}")

    def approve_gate(self, chance: Random) -> None:
        """A person approves a day that waits at the gate."""
        self.crash_points.disarm()
        context = self.context("person")
        closed = gate.closed_gates(context)
        if closed:
            day = chance.choice(closed).day
            gate.approve_gate(context, day, "simulated")
            self.log.append(f"{day} is approved at the gate")

    # Stripe ----------------------------------------------------------------------------------

    def pass_time(self, chance: Random) -> None:
        """Minutes, hours or a day pass."""
        step = chance.choice([60, 3600, 4 * 3600, 12 * 3600, 26 * 3600])
        self.advance(step)
        self.log.append(f"{step} s pass: {self.clock():%m-%d %H:%M}")

    def pass_month(self, chance: Random) -> None:
        """Rarely, a month passes: Stripe accepts no more usage of the days before."""
        if chance.random() < 0.15:
            self.advance(36 * 86_400)
            self.log.append(f"a month passes: {self.clock():%m-%d %H:%M}")

    def advance(self, seconds: float) -> None:
        """Advance both clocks; Stripe does what is due."""
        self.now += seconds
        self.sandbox.tick()

    def change_faults(self, chance: Random) -> None:
        """Stripe gets other faults."""
        names = ("rate_limit", "error_before", "error_after", "cut_before", "cut_after", "dropped")
        rates = {name: chance.choice([0, 0, 0.1, 0.4]) for name in names}
        self.sandbox.faults = Faults(
            **rates,
            forgotten=chance.choice([0, 0, 0.5]),
            lag=chance.choice([0, 0, 60, 1200]),
            late_checks=chance.choice([0, 1]),
            report_after=chance.choice([0, 600, 7200]),
        )
        self.log.append(f"faults: {self.sandbox.faults}")

    def toggle_meter(self, chance: Random) -> None:
        """A meter is deactivated, or reactivated."""
        id = chance.choice(sorted(self.account.meters))
        status = "active" if self.account.meters[id]["status"] == "inactive" else "inactive"
        self.account.change_meter(id, status=status)
        self.log.append(f"{id} is {status}")

    # The pipeline ----------------------------------------------------------------------------

    def deliver_webhooks(self, chance: Random) -> None:
        """Some Stripe events arrive, in any order; some have arrived before."""
        self.sandbox.tick()
        events = [e for e in self.account.outbox.events if chance.random() < 0.7]
        if chance.random() < 0.3:  # only the newest event of each object
            newest = {
                e["data"].get("object", {}).get("id") or e["id"]: e
                for e in self.account.outbox.events
            }
            events = list(newest.values())
        chance.shuffle(events)
        self.receive(events)
        self.log.append(f"{len(events)} webhooks")

    def receive(self, events: list[dict[str, Any]]) -> None:
        """Store Stripe events as the webhook handler does."""
        store = EventStore(self.database)
        self.crash_points.disarm()
        for each in events:
            body = json.dumps(notification(each))
            store.keep(read(body), body, self.clock(), "webhook")

    def count(self, chance: Random) -> None:
        """Some days are counted."""
        for day in self.days():
            if chance.random() < 0.6:
                self._count(day)
        self.log.append("some days are counted")

    def _count(self, day: date) -> None:
        """Take the snapshot of a day if its rows have changed, as the assets do."""
        if self.readings.is_current(day):
            return
        mark_counted(self.context("count"), day)
        self.readings.count(day, self.clock())

    def run(self, chance: Random) -> None:
        """A run over some days in any order, which may be counted first. It may die."""
        days = self.days()
        chance.shuffle(days)
        days = days[: chance.randint(1, max(1, len(days)))]
        if chance.random() < 0.8:
            for day in days:
                self._count(day)
        crash = chance.random() < 0.4
        self._act(
            lambda context: self._bill(context, days, report_undone=True),
            chance if crash else None,
            "run",
        )

    def undo(self, chance: Random) -> None:
        """A person undoes a run. The process may die."""
        if self.runs:
            name = chance.choice(self.runs)
            crash = chance.random() < 0.3
            by = Actor("person", "simulated")
            self._act(
                lambda context: undo_run(context, name, by),
                chance if crash else None,
                f"undo {name}",
            )

    def run_unfinished(self, chance: Random) -> None:
        """The run that the sensor would start. It may die."""
        crash = chance.random() < 0.2
        self._act(
            lambda context: self._bill(context, unfinished_days(context)),
            chance if crash else None,
            "unfinished",
        )

    def verify(self, chance: Random) -> None:
        """Every figure is compared with Stripe."""
        self._act(
            lambda context: verify_days(context, self.days(), everything=True), chance, "verify"
        )

    def apply(self, chance: Random) -> None:
        """Stored Stripe events are applied. The process may die."""
        self._act(apply_events, chance if chance.random() < 0.3 else None, "apply")

    def backstop(self, chance: Random) -> None:
        """Stripe events that no webhook delivered are fetched."""
        since = self.clock() - timedelta(days=30)
        self._act(
            lambda context: fetch_missed(context.inbox, context.gateway, since, self.clock()),
            None,
            "backstop",
        )

    def overlap(self, chance: Random) -> None:
        """A second run interrupts a first one."""
        days = self.days()
        other = list(days)
        chance.shuffle(other)
        for day in days:
            self._count(day)

        def interrupt() -> None:
            thread = threading.Thread(target=lambda: self.crash_points.uninterrupted(second_run))
            thread.start()
            thread.join()

        def second_run() -> None:
            with self._process():
                self._bill(self.context(self._named("second")), other)

        self.crash_points.disarm()
        self.crash_points.arm(chance.randint(1, 60), interrupt)
        with self._process():
            self._bill(self.context(self._named("first")), days)
        self.crash_points.disarm()
        self.log.append("two runs overlap")

    def _bill(self, context: Context, days: list[date], *, report_undone: bool = False) -> None:
        report_days(context, days, options=PlanOptions(report_undone=report_undone))
        verify_days(context, days)

    def _act(self, act: Callable[[Context], Any], chance: Random | None, what: str) -> None:
        self.crash_points.disarm()
        if chance is not None:
            self.crash_points.arm(chance.randint(1, 80))
        before = self.crashes
        with self._process():
            act(self.context(self._named(what)))
        self.crash_points.disarm()
        self.log.append(f"{what}{' dies' if self.crashes > before else ''}")

    def _named(self, what: str) -> str:
        """The name of a new run."""
        self.runs.append(f"{what} #{len(self.runs)}")
        return self.runs[-1]

    @contextmanager
    def _process(self) -> Iterator[None]:
        """A process. It may die or end with an error of configuration; the world goes on."""
        try:
            yield
        except Crash:
            self.crashes += 1
        except ConfigurationError as error:
            self.log.append(f"refused: {error}")

    def _run_as_sensors_ask(self, context: Context) -> None:
        """Days whose readings changed or whose invoice is a draft, then unfinished days."""
        changed = {day for day in self.days() if not self.readings.is_current(day)}
        changed |= closing_days(context).keys()
        for day in sorted(changed):
            self._count(day)
        self._bill(context, sorted(changed))
        self._bill(context, unfinished_days(context))

    def _decide_most(self) -> None:
        """People decide about most of what waits for them."""
        for _ in range(len(adjustments.open_adjustments(self.context("person")))):
            if self.chance.random() < 0.8:
                self.decide(self.chance)
        if self.chance.random() < 0.5:
            self.approve_gate(self.chance)

    # The end ---------------------------------------------------------------------------------

    def become_quiet(self) -> int:
        """End all faults and let the pipeline run until nothing changes.

        Returns the number of rounds; -1 if it still changes after the last one.
        """
        self.sandbox.faults = replace(Faults(), report_after=0)
        for id, meter in self.account.meters.items():
            if meter["status"] == "inactive":
                self.account.change_meter(id, status="active")
        before: object = None
        for round, pause in enumerate([60, 7200, 90_000, 90_000, *[7200] * 20], start=1):
            self.advance(pause)
            self.receive(list(self.account.outbox.events))
            context = self.context("quiet")
            apply_events(context)
            if round in (3, 4):
                self._decide_most()
            self._run_as_sensors_ask(context)
            self.advance(60)
            self.receive(list(self.account.outbox.events))
            apply_events(context)
            verify_days(context, self.days(), everything=True)
            after = (
                len(self.account.events),
                context.ledger.read(queries.counts, self.days()),
                [h.as_json() for h in context.ledger.read(queries.holds_of, self.days())],
            )
            if round > 4 and after == before:
                return round
            before = after
        return -1
