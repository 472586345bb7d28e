"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from billing_pipeline.settings import load_settings

HOME = Path("var/bench")
CALLS = 3_000
PARTS = ("counting", "lake", "planning", "ledger", "delivery", "clients", "webhooks")


def main() -> None:
    """Run what was asked for; print Markdown tables, or one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=[
            "counting",
            "lake",
            "planning",
            "ledger",
            "delivery",
            "clients",
            "webhooks",
            "all",
        ],
        default="all",
        help="all: one after the other",
    )
    parser.add_argument(
        "--rows",
        type=lambda text: [int(part) for part in text.split(",")],
        default="1000000,10000000",
        help="readings to count, several separated by commas (default: %(default)s); "
        "100000000 takes minutes and 2 GB of disk",
    )
    parser.add_argument(
        "--memory",
        default=load_settings().memory_limit,
        help="DuckDB's memory limit (default: the pipeline's, here %(default)s)",
    )
    parser.add_argument(
        "--events", type=int, default=20_000, help="to deliver (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=int, default=1_000, help="events a second allowed (default: %(default)s)"
    )
    parser.add_argument(
        "--webhooks",
        type=int,
        default=5_000,
        help="to post, for each kind of database (default: %(default)s)",
    )
    parser.add_argument(
        "--organizations",
        type=int,
        default=100_000,
        help="to plan a day for (default: %(default)s)",
    )
    parser.add_argument(
        "--backfill",
        type=int,
        default=10_000,
        help="organizations of a backfill over all days with nothing new (default: %(default)s)",
    )
    parser.add_argument(
        "--lake",
        type=lambda text: [int(part) for part in text.split("x")],
        default="200x91",
        help="days x files a day (default: %(default)s); three years: 1095x91",
    )
    parser.add_argument(
        "--ledger-events",
        type=int,
        default=1_000_000,
        help="in a ledger that is asked about (default: %(default)s)",
    )
    parser.add_argument(
        "--plans", action="store_true", help="print the database's plans of slow queries"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    asked = parser.parse_args()

    document: dict[str, Any] = {"machine": machine()}
    if asked.what in ("counting", "all"):
        # Imported where used: on Linux a new process begins with its parent's peak memory, so
        # this one must stay smaller than those it measures.
        from benchmarks.counting import measure_counting

        document["counting"] = []
        for rows in asked.rows:
            print(f"counting {rows:,} readings …", file=sys.stderr)
            document["counting"].append(measure_counting(HOME, rows, asked.memory))
    if asked.what in ("delivery", "all"):
        from benchmarks.delivery import measure_delivery

        print(f"delivering {asked.events:,} events …", file=sys.stderr)
        document["delivery"] = [measure_delivery(HOME, asked.events, asked.rate)]
    if asked.what in ("clients", "all"):
        from benchmarks.clients import measure_clients

        print("comparing the SDK's HTTP clients …", file=sys.stderr)
        document["clients"] = measure_clients(HOME, CALLS)
    if asked.what in ("lake", "all"):
        from benchmarks.lake import measure_lake, measure_window

        print("looking for what changed …", file=sys.stderr)
        document["lake"] = [measure_lake(HOME, *asked.lake)]
        document["window"] = [measure_window(HOME, 500_000, 30)]
    if asked.what in ("ledger", "all"):
        from benchmarks.ledger import measure_ledger

        print(f"asking a ledger of {asked.ledger_events:,} events …", file=sys.stderr)
        document["ledger"] = measure_ledger(HOME, asked.ledger_events, plans=asked.plans)
    if asked.what in ("planning", "all"):
        from benchmarks.planning import measure_planning

        print(f"planning for {asked.organizations:,} organizations …", file=sys.stderr)
        document["planning"] = measure_planning(HOME, asked.organizations, asked.backfill)
    if asked.what in ("webhooks", "all"):
        from benchmarks.webhooks import measure_webhooks

        print(f"posting {asked.webhooks:,} webhooks …", file=sys.stderr)
        document["webhooks"] = measure_webhooks(HOME, asked.webhooks)

    if asked.json:
        print(json.dumps(document))
        return
    print(f"Measured on: {document.pop('machine')}\n")
    for rows in document.values():
        print(_markdown(rows))


def _markdown(rows: list[dict[str, Any]]) -> str:
    def line(cells: list[Any]) -> str:
        texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
        return f"| {' | '.join(texts)} |\n"

    head = list(rows[0])
    body = "".join(line(list(row.values())) for row in rows)
    return line(head) + line(["--:"] * len(head)) + body


if __name__ == "__main__":
    main()
