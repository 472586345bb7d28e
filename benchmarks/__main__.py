"""Run benchmarks and print their tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from billing_pipeline.settings import load_settings

HOME = Path("var/bench")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it prints while it works, and the function that measures it."""

    message: str
    measure: Callable[[argparse.Namespace], dict[str, list[dict[str, Any]]]]


def counting(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Snapshots of days of several sizes."""
    from benchmarks.counting import measure_counting

    return {"counting": [measure_counting(HOME, rows, options.memory) for rows in options.rows]}


def lake(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Changed days of a lake, and windows of days."""
    from benchmarks.lake import measure_lake, measure_window

    return {
        "lake": [measure_lake(HOME, *options.lake)],
        "window": [measure_window(HOME, *options.window)],
    }


def planning(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The plan of a day by organizations, and a backfill with nothing new."""
    from benchmarks.planning import measure_backfill, measure_planning

    return {
        "planning": measure_planning(HOME, options.organizations),
        "backfill": measure_backfill(HOME, options.backfill),
    }


def verification(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The verification of a day by organizations."""
    from benchmarks.verification import measure_verification

    return {"verification": measure_verification(HOME, options.verified)}


def ledger(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Questions to a large ledger."""
    from benchmarks.ledger import measure_ledger

    return {"ledger": measure_ledger(HOME, options.ledger_events, plans=options.plans)}


def delivery(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Delivery of events at the limit."""
    from benchmarks.delivery import measure_delivery

    return {"delivery": [measure_delivery(HOME, options.events, options.rate)]}


def clients(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The HTTP clients of Stripe's SDK."""
    from benchmarks.clients import measure_clients

    return {"clients": measure_clients(HOME, options.calls)}


def webhooks(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Stripe events, stored."""
    from benchmarks.webhooks import measure_webhooks

    return {"webhooks": measure_webhooks(HOME, options.webhooks)}


# Each function imports its benchmark: on Linux a new process starts with the peak memory of its
# parent, so this process must stay smaller than those that it measures.
BENCHMARKS = {
    "counting": Benchmark("counting days", counting),
    "lake": Benchmark("looking for what changed", lake),
    "planning": Benchmark("planning", planning),
    "verification": Benchmark("verifying", verification),
    "ledger": Benchmark("asking a large ledger", ledger),
    "delivery": Benchmark("delivering", delivery),
    "clients": Benchmark("comparing the SDK's HTTP clients", clients),
    "webhooks": Benchmark("posting webhooks", webhooks),
}


def main() -> None:
    """Run the chosen benchmarks; print Markdown tables, or one JSON document."""
    options = _arguments()
    document: dict[str, Any] = {"machine": machine()}
    for name, benchmark in BENCHMARKS.items():
        if options.benchmark in (name, "all"):
            print(f"{benchmark.message} …", file=sys.stderr)
            document |= benchmark.measure(options)
    if options.json:
        print(json.dumps(document))
        return
    print(f"Measured on: {document.pop('machine')}\n")
    for rows in document.values():
        print(_markdown(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add(
        "benchmark",
        nargs="?",
        choices=[*BENCHMARKS, "all"],
        default="all",
        help="default: all, one after the other",
    )
    add(
        "--rows",
        type=_numbers(","),
        default="1000000,10000000,100000000",
        help="sizes of a day in readings, separated by commas (default: %(default)s); "
        "a billion takes an hour and 16 GB of disk",
    )
    add(
        "--memory",
        default=load_settings().memory_limit,
        help="memory limit of DuckDB and the kernel (default: the pipeline's, here %(default)s)",
    )
    add("--events", type=int, default=20_000, help="events to deliver (default: %(default)s)")
    add("--rate", type=int, default=1_000, help="events a second allowed (default: %(default)s)")
    add("--calls", type=int, default=3_000, help="calls by each HTTP client (default: %(default)s)")
    add(
        "--webhooks",
        type=int,
        default=5_000,
        help="webhooks to post, for each kind of database (default: %(default)s)",
    )
    add(
        "--organizations",
        type=_numbers(","),
        default="1000,10000,100000",
        help="numbers of organizations to plan a day for (default: %(default)s)",
    )
    add(
        "--backfill",
        type=int,
        default=10_000,
        help="organizations of a backfill with nothing new (default: %(default)s)",
    )
    add(
        "--verified",
        type=_numbers(","),
        default="500,5000",
        help="numbers of organizations to verify a day for (default: %(default)s)",
    )
    add(
        "--lake",
        type=_numbers("x"),
        default="200x91",
        help="days x files a day (default: %(default)s); three years: 1095x91",
    )
    add(
        "--window",
        type=_numbers("x"),
        default="500000x30",
        help="sensors x days of a window (default: %(default)s)",
    )
    add(
        "--ledger-events",
        type=int,
        default=1_000_000,
        help="events in the large ledger (default: %(default)s)",
    )
    add("--plans", action="store_true", help="print the database's plans of slow queries")
    add("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _numbers(separator: str) -> Callable[[str], list[int]]:
    return lambda text: [int(number) for number in text.split(separator)]


def _markdown(rows: list[dict[str, Any]]) -> str:
    def line(cells: list[Any]) -> str:
        texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        return f"| {' | '.join(texts)} |\n"

    head = list(rows[0])
    body = "".join(line(list(row.values())) for row in rows)
    return line(head) + line(["--:"] * len(head)) + body


if __name__ == "__main__":
    main()
