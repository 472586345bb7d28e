"""The command line: `python -m benchmarks --help`."""

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
class Part:
    """A benchmark: what it is told to say while it works, and how it is measured."""

    message: str
    measure: Callable[[argparse.Namespace], dict[str, list[dict[str, Any]]]]


def counting(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Snapshots of days of several sizes."""
    from benchmarks.counting import measure_counting

    return {"counting": [measure_counting(HOME, rows, asked.memory) for rows in asked.rows]}


def lake(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Changed days of a lake, and windows of days."""
    from benchmarks.lake import measure_lake, measure_window

    return {
        "lake": [measure_lake(HOME, *asked.lake)],
        "window": [measure_window(HOME, *asked.window)],
    }


def planning(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A day by organizations, and a backfill with nothing new."""
    from benchmarks.planning import measure_backfill, measure_planning

    return {
        "planning": measure_planning(HOME, asked.organizations),
        "backfill": measure_backfill(HOME, asked.backfill),
    }


def verification(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A day by organizations."""
    from benchmarks.verification import measure_verification

    return {"verification": measure_verification(HOME, asked.verified)}


def ledger(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Questions to a large ledger."""
    from benchmarks.ledger import measure_ledger

    return {"ledger": measure_ledger(HOME, asked.ledger_events, plans=asked.plans)}


def delivery(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Events at the limit."""
    from benchmarks.delivery import measure_delivery

    return {"delivery": [measure_delivery(HOME, asked.events, asked.rate)]}


def clients(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The HTTP clients of Stripe's SDK."""
    from benchmarks.clients import measure_clients

    return {"clients": measure_clients(HOME, asked.calls)}


def webhooks(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Events of Stripe's, stored."""
    from benchmarks.webhooks import measure_webhooks

    return {"webhooks": measure_webhooks(HOME, asked.webhooks)}


# Each imports its own where used: on Linux a new process begins with its parent's peak memory, so
# this one must stay smaller than those it measures.
PARTS = {
    "counting": Part("counting days", counting),
    "lake": Part("looking for what changed", lake),
    "planning": Part("planning", planning),
    "verification": Part("verifying", verification),
    "ledger": Part("asking a large ledger", ledger),
    "delivery": Part("delivering", delivery),
    "clients": Part("comparing the SDK's HTTP clients", clients),
    "webhooks": Part("posting webhooks", webhooks),
}


def main() -> None:
    """Run what was asked for; print Markdown tables, or one JSON document."""
    asked = _arguments()
    document: dict[str, Any] = {"machine": machine()}
    for name, part in PARTS.items():
        if asked.what in (name, "all"):
            print(f"{part.message} …", file=sys.stderr)
            document |= part.measure(asked)
    if asked.json:
        print(json.dumps(document))
        return
    print(f"Measured on: {document.pop('machine')}\n")
    for rows in document.values():
        print(_markdown(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("what", nargs="?", choices=[*PARTS, "all"], default="all", help="all: one after the other")
    add(
        "--rows",
        type=_numbers(","),
        default="1000000,10000000,100000000",
        help="readings to count, several separated by commas (default: %(default)s); "
        "a billion takes an hour and 16 GB of disk",
    )
    add(
        "--memory",
        default=load_settings().memory_limit,
        help="DuckDB's and the kernel's memory limit (default: the pipeline's, here %(default)s)",
    )
    add("--events", type=int, default=20_000, help="to deliver (default: %(default)s)")
    add("--rate", type=int, default=1_000, help="events a second allowed (default: %(default)s)")
    add("--calls", type=int, default=3_000, help="by each HTTP client (default: %(default)s)")
    add(
        "--webhooks",
        type=int,
        default=5_000,
        help="to post, for each kind of database (default: %(default)s)",
    )
    add(
        "--organizations",
        type=_numbers(","),
        default="1000,10000,100000",
        help="to plan a day for (default: %(default)s)",
    )
    add(
        "--backfill",
        type=int,
        default=10_000,
        help="organizations of a backfill over all days with nothing new (default: %(default)s)",
    )
    add(
        "--verified",
        type=_numbers(","),
        default="500,5000",
        help="organizations to verify a day for (default: %(default)s)",
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
        help="in a ledger that is asked about (default: %(default)s)",
    )
    add("--plans", action="store_true", help="print the database's plans of slow queries")
    add("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _numbers(separator: str) -> Callable[[str], list[int]]:
    return lambda text: [int(part) for part in text.split(separator)]


def _markdown(rows: list[dict[str, Any]]) -> str:
    def line(cells: list[Any]) -> str:
        texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        return f"| {' | '.join(texts)} |\n"

    head = list(rows[0])
    body = "".join(line(list(row.values())) for row in rows)
    return line(head) + line(["--:"] * len(head)) + body


if __name__ == "__main__":
    main()
