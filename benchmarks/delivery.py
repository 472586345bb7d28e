"""Delivery of planned events at the rate that the key allows, against that rate.

The sandbox runs in a process of its own and enforces the rate; half as many organizations as
events are reported on two meters for one day. Everything on the way is the pipeline's own: the
plan, the ledger (SQLite, each commit flushed to the disk), the courier, the official SDK.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from pydantic import SecretStr

from billing_pipeline.database import open_database
from billing_pipeline.ledger.account import bind
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.operations.context import utc_now
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.model import (
    Meter,
    Usage,
)
from billing_pipeline.rules.planning import (
    DayPlan,
    plan_day,
)
from billing_pipeline.sandbox.server import make_sandbox
from billing_pipeline.settings import (
    DEFAULT_METERS,
    Settings,
)
from billing_pipeline.stripe_api.catalogue import ensure_meters
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.delivery import deliver


class _Gateway(StripeGateway):
    """A gateway to the sandbox at a rate of our choice."""

    def __init__(self, base: str, rate: int) -> None:
        super().__init__(
            Settings(
                stripe_secret_key=SecretStr("sk_test_benchmark"),
                stripe_api_base=base,
                stripe_meter_events_base=base,
            )
        )
        self._rate = rate

    @property
    def calls_per_second(self) -> int:
        """The rate asked for."""
        return self._rate


def measure_delivery(home: Path, events: int, rate: int) -> dict[str, Any]:
    """One row of the table; keys are its columns. Raises if a total in the sandbox is wrong."""
    home.mkdir(parents=True, exist_ok=True)
    others = _children_cpu()
    with tempfile.TemporaryDirectory(dir=home, prefix="delivery-") as folder:
        state = Path(folder) / "stripe.jsonl"
        customers = make_customers(state, events // len(DEFAULT_METERS))
        with running_sandbox(state, rate) as base:
            gateway = _Gateway(base, rate)
            ledger = Ledger(open_database(f"sqlite:///{folder}/billing.db"), "benchmark")
            catalogue, _ = asyncio.run(ensure_meters(gateway, DEFAULT_METERS, ledger))
            ledger.write(
                bind, catalogue.account_id, catalogue.livemode, catalogue.meters, utc_now()
            )
            day = utc_now().date() - timedelta(days=1)
            plan = _plan(ledger, catalogue.meters, customers, day)

            cpu, begun = time.process_time(), time.perf_counter()
            payers = Payers(customers)
            report = deliver(gateway, ledger, catalogue.meters, [day], utc_now, payers=payers)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu

            with urlopen(f"{base}/_sandbox") as answer:
                stripe = json.load(answer)
            ledger.engine.dispose()
        _check(plan, report.sent, stripe)
    return {
        "events": len(plan.events),
        "limit /s": rate,
        "seconds": round(seconds, 1),
        "events /s": round(len(plan.events) / seconds),
        "share of limit": f"{len(plan.events) / seconds / rate:.1%}",
        "429s": stripe["seen"].get("over_limit", 0),
        "CPU s": round(cpu, 1),
        "sandbox CPU s": round(_children_cpu() - others, 1),
    }


def make_customers(state: Path, number: int) -> dict[str, str]:
    """Customers by organization, in the state that the sandbox will start with."""
    account = make_sandbox(state=state).account
    names = [f"org-{n:05}" for n in range(number)]
    return {name: account.make_customer({"name": name})["id"] for name in names}


def _plan(
    ledger: Ledger, meters: tuple[Meter, ...], customers: dict[str, str], day: date
) -> DayPlan:
    now = utc_now()
    usage = {name: Usage(n, 288 * n) for n, name in enumerate(customers, start=1)}
    with ledger.planning() as connection:
        plan = plan_day(day, meters, usage, Payers(customers), {}, now)
        ledger.write_plan(connection, plan, lambda cell: True, None, now)
    return plan


def _check(plan: DayPlan, sent: int, stripe: dict[str, Any]) -> None:
    """Every event arrived once, and what Stripe would bill is what was planned."""
    assert sent == stripe["events"] == len(plan.events), (sent, stripe["events"], len(plan.events))
    planned = {(e.customer, e.cell.event_name): e.target for e in plan.events}
    billed = {(t["customer"], t["meter"]): t["value"] for t in stripe["totals"]}
    assert billed == planned


@contextmanager
def running_sandbox(state: Path, limit: int) -> Iterator[str]:
    """The sandbox in its own process; yields its address."""
    serve = ["sandbox", "serve", "--port", "0", "--json", "--state", str(state)]
    start = [sys.executable, "-c", "from billing_pipeline.cli.app import main; main()", *serve]
    with subprocess.Popen([*start, "--faults", f"limit={limit}"], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            base = json.loads(server.stdout.readline())["base"]
            _await_answer(base)
            yield base
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def _await_answer(base: str) -> None:
    """The address is known before the server answers there."""
    for _ in range(100):
        try:
            urlopen(f"{base}/_sandbox").close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the sandbox did not start")


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
