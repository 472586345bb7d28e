"""Verification by number of organizations: every figure of a day, read from the sandbox.

The day is counted, reported and sent first. Then each customer and meter is compared with Stripe's
summary. In production `BILLING_VERIFICATION_READS` limits how many summaries are read.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.fixtures import make_customers, open_context, running_sandbox, write_readings
from billing_pipeline.operations.bill import count_usage, report_days, verify_days
from billing_pipeline.operations.context import utc_now


def measure_verification(home: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A row of the table for each number of organizations. Raises if a figure differs."""
    home.mkdir(parents=True, exist_ok=True)
    return [_measure(home, size) for size in sizes]


def _measure(home: Path, organizations: int) -> dict[str, Any]:
    day = utc_now().date() - timedelta(days=1)
    with tempfile.TemporaryDirectory(dir=home, prefix="verification-") as name:
        folder = Path(name)
        state, url = folder / "stripe.jsonl", f"sqlite:///{folder}/billing.db"
        customers = make_customers(state, organizations)
        with (
            running_sandbox(state, 0) as base,
            open_context(folder, url, base, customers, make_meters=True) as context,
        ):
            write_readings(folder / "readings", [day], organizations)
            count_usage(context, day)
            begun = time.perf_counter()
            outcome = report_days(context, [day])
            sending = time.perf_counter() - begun
            cpu, begun = time.process_time(), time.perf_counter()
            report = verify_days(context, [day], everything=True)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    figures = 2 * organizations
    assert (outcome.sent, outcome.stopped) == (figures, None), outcome.stopped
    assert (report.agreed, report.lagging, report.postponed) == (figures, 0, 0), report
    return {
        "organizations": organizations,
        "events": figures,
        "planned and sent s": round(sending, 1),
        "verified s": round(seconds, 1),
        "figures read /s": round(figures / seconds),
        "CPU ms a figure": round(1000 * cpu / figures, 2),
    }
