"""Delivery of planned events, compared with the rate that the key allows.

The sandbox runs in its own process and enforces the rate. Half as many organizations as events are
reported on two meters for one day. Plan, ledger (SQLite, each commit flushed to the disk), delivery
and SDK are those of the pipeline.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.fixtures import make_customers, open_context, running_sandbox
from billing_pipeline.ledger.plans import write_plan
from billing_pipeline.operations.bill import deliver_days
from billing_pipeline.operations.context import Context, contact_stripe, utc_now
from billing_pipeline.rules.day_inputs import DayInputs
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.model import Meter, Usage
from billing_pipeline.rules.planning import DayPlan, plan
from billing_pipeline.settings import DEFAULT_METERS, Settings
from billing_pipeline.stripe_api.client import StripeGateway

SNAPSHOT = "benchmark"


class _Gateway(StripeGateway):
    """A gateway with a rate of our choice."""

    def __init__(self, settings: Settings, rate: int) -> None:
        super().__init__(settings)
        self._rate = rate

    @property
    def calls_per_second(self) -> int:
        return self._rate


def measure_delivery(home: Path, events: int, rate: int) -> dict[str, Any]:
    """One row of the table; keys are its columns. Raises if a total in the sandbox is wrong."""
    home.mkdir(parents=True, exist_ok=True)
    others = _children_cpu()
    with tempfile.TemporaryDirectory(dir=home, prefix="delivery-") as name:
        folder = Path(name)
        state, url = folder / "stripe.jsonl", f"sqlite:///{folder}/billing.db"
        customers = make_customers(state, events // len(DEFAULT_METERS))
        with (
            running_sandbox(state, rate) as base,
            open_context(folder, url, base, customers, make_meters=True) as opened,
        ):
            context = replace(opened, gateway=_Gateway(opened.settings, rate))
            day = utc_now().date() - timedelta(days=1)
            meters = list(contact_stripe(context).meters)
            planned = _plan(context, meters, customers, day)
            cpu, begun = time.process_time(), time.perf_counter()
            report = deliver_days(context, meters, [day], None)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
            with urlopen(f"{base}/_sandbox") as answer:
                stripe = json.load(answer)
        _check(planned, report.sent, stripe)
    return {
        "events": len(planned.events),
        "limit /s": rate,
        "seconds": round(seconds, 1),
        "events /s": round(len(planned.events) / seconds),
        "share of limit": f"{len(planned.events) / seconds / rate:.1%}",
        "429s": stripe["seen"].get("over_limit", 0),
        "CPU s": round(cpu, 1),
        "sandbox CPU s": round(_children_cpu() - others, 1),
    }


def _plan(context: Context, meters: list[Meter], customers: dict[str, str], day: date) -> DayPlan:
    """Plan a day with made-up usage, and write the plan."""
    now = utc_now()
    usage = {name: Usage(n, 288 * n) for n, name in enumerate(customers, start=1)}
    planned = plan(DayInputs(day, now, meters, SNAPSHOT, usage, payers=Payers(customers)))
    with context.ledger.planning() as writer:
        write_plan(writer, planned, lambda cell: True, SNAPSHOT, now)
    return planned


def _check(planned: DayPlan, sent: int, stripe: dict[str, Any]) -> None:
    """Every event arrived once, and Stripe would bill what was planned."""
    number = len(planned.events)
    assert sent == stripe["events"] == number, (sent, stripe["events"], number)
    targets = {(e.customer, e.cell.event_name): e.target for e in planned.events}
    billed = {(t["customer"], t["meter"]): t["value"] for t in stripe["totals"]}
    assert billed == targets


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
