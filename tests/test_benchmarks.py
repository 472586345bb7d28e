"""The benchmarks at a small size. They check their counts themselves; times do not matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(benchmark: str, *options: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", benchmark, *options, "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def only(rows: list[dict[str, Any]], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[column] for column in columns) for row in rows]


@pytest.mark.parametrize(
    ("benchmark", "options", "columns", "expected"),
    [
        ("counting", ["--rows", "20000,30000"], ["readings"], [(20_000,), (30_000,)]),
        ("lake", ["--lake", "4x3", "--window", "300x4"], ["days", "files"], [(4, 12)]),
        (
            "planning",
            ["--organizations", "20,50", "--backfill", "30"],
            ["database", "organizations"],
            [("SQLite", 20), ("SQLite", 50), ("PostgreSQL", 20), ("PostgreSQL", 50)],
        ),
        ("verification", ["--verified", "20"], ["organizations", "events"], [(20, 40)]),
        ("delivery", ["--events", "200"], ["events", "limit /s"], [(200, 1000)]),
        ("webhooks", ["--webhooks", "60"], ["events"], [(60,), (60,)]),
    ],
)
def test_a_benchmark_runs_and_its_counts_are_right(
    benchmark: str, options: list[str], columns: list[str], expected: list[tuple[Any, ...]]
) -> None:
    document = run(benchmark, *options)
    assert only(document[benchmark], *columns) == expected


def test_questions_to_a_large_ledger_are_few_queries_each() -> None:
    questions = run("ledger", "--ledger-events", "20000")["ledger"]
    assert all(row["queries"] <= 25 for row in questions)


def test_every_http_client_that_is_installed_is_compared() -> None:
    compared = only(run("clients", "--calls", "50")["clients"], "client", "calls")
    assert {("aiohttp", 50), ("requests", 50), ("urllib", 50)} <= set(compared)
