"""People decide while processes are killed.

Runs, undos, approvals and dismissals are killed at random moments, and connections to the database
are cut. In the end every unit is billed or on record.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from billing_pipeline.ledger.adjustments import decided_adjustments
from billing_pipeline.operations.adjust import open_adjustments
from billing_pipeline.operations.gate import closed_gates
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.faults import Faults
from tests.integration.test_processes import BILLING
from tests.support import SUM, World, new_database, yesterday

DAYS = [yesterday() - timedelta(days=n) for n in reversed(range(5))]
CLOSED, OPEN = DAYS[:3], DAYS[3:]
"""Acme's billing period ended with the third day and is invoiced; the others have no period."""

OTHERS = ["b", "c", "d"]
SPAN = ["--from", str(DAYS[0]), "--to", str(DAYS[-1])]
GATES = {"least_days": 2, "least_readings": 4, "whole_low": 0.4, "organization_low": 0.0,
         "whole_high": 1000, "organization_high": 1000}  # fmt: skip

Usage = dict[Any, dict[str, dict[str, int]]]


class NeverRestarted:
    """SQLite is no server."""

    def __call__(self) -> None: ...


@pytest.fixture(params=["sqlite", "postgresql"])
def restart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Cuts every connection to the ledger's database, as a restart of its server does."""
    if request.param == "sqlite":
        return NeverRestarted()
    maintenance = str(request.getfixturevalue("postgres"))
    name = f"decisions_{os.getpid()}"
    monkeypatch.setenv("BILLING_DATABASE_URL", new_database(maintenance, name))

    def cut_connections() -> None:
        engine = create_engine(maintenance)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
                ),
                {"name": name},
            )
        engine.dispose()

    return cut_connections


@pytest.fixture
def scene(world: World, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> World:
    home = world.home / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("BILLING_GATES", json.dumps(GATES))
    world.make_meters()
    world.make_customers(["acme", *OTHERS])
    end = day_start(OPEN[0])
    subscription = world.make_subscription(
        world.customers["acme"], backdate_start_date=str(end - 5 * 86_400)
    )
    world.end_period(subscription, end)
    world.receive()
    return world


def start(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file, output.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen([*BILLING, *arguments, "--json"], stdout=file, stderr=errors)


def finished(arguments: list[str], output: Path) -> tuple[int, dict[str, Any]]:
    process = start(arguments, output)
    process.wait(180)
    answer = output.read_text()
    assert answer, output.with_suffix(".err").read_text()[-3000:]
    return process.returncode, json.loads(answer)


def change(world: World, usage: Usage, chance: random.Random) -> None:
    """Readings come late, grow, vanish; now and then nothing came in at all."""
    for day in chance.sample(DAYS, 2):
        empty = chance.random() < 0.3
        usage[day] = {
            name: {}
            if empty
            else {f"s{n}": chance.randint(1, 5) for n in range(chance.randint(1, 3))}
            for name in ("acme", *OTHERS)
        }
        world.write_readings(day, usage[day])


def something_to_do(world: World, chance: random.Random) -> list[str]:
    """A run, or a decision about a gate, an amount or the newest run."""
    context = world.context("looking")
    with context.ledger.engine.begin() as connection:
        runs = list(connection.scalars(text("SELECT run FROM runs ORDER BY started_at, run")))
    waiting = [each.id for each in open_adjustments(context)]
    gates = [str(gate.day) for gate in closed_gates(context)]
    context.close()
    why = ["--reason", "by the test"]
    possible = [["run", *SPAN]] * 2
    possible += [["undo", "--run", run, *why] for run in runs[-1:]]
    verdict = chance.choice(["approve", "dismiss"])
    possible += [["adjustments", verdict, id, *why] for id in waiting[:2]]
    possible += [["gate", "approve", "--day", day, *why] for day in gates[:2]]
    return chance.choice(possible)


def test_whatever_is_killed_while_people_decide_every_unit_is_billed_or_on_record(
    scene: World, restart: Callable[[], None], tmp_path: Path
) -> None:
    chance = random.Random(4)
    on_server = not isinstance(restart, NeverRestarted)
    usage: Usage = {day: {} for day in DAYS}
    scene.sandbox.faults = Faults.parse(
        "latency=0.02,rate_limit=0.05,cut_after=0.1,error_after=0.05"
    )
    killed = 0
    for attempt in range(12 if on_server else 16):
        change(scene, usage, chance)
        process = start(something_to_do(scene, chance), tmp_path / f"{attempt}.json")
        try:
            process.wait(chance.uniform(1.5, 6))
        except subprocess.TimeoutExpired:
            if attempt % 3 == 2:
                restart()
            process.kill()
            process.wait(30)
            killed += 1
    assert killed >= 4
    scene.sandbox.faults = Faults()
    scene.sandbox.stored.clear()  # as after a day: Stripe no longer repeats a stored 500
    resolve(scene, tmp_path / "resolve.json")
    identifiers = [event.identifier for event in scene.sandbox.account.events]
    assert len(identifiers) == len(set(identifiers))
    # Organizations without a closed period are billed what the readings prove, day by day.
    acme = scene.customers["acme"]
    due = {key: value for key, value in scene.due(usage).items() if key[0] != acme}
    assert {key: value for key, value in scene.billed().items() if key[0] != acme} == due
    # Of the closed period every unit is billed now, or written off by a decision.
    context = scene.context()
    decided = context.ledger.read(decided_adjustments)
    assert decided
    billed = sum(v for (who, meter, _), v in scene.billed().items() if (who, meter) == (acme, SUM))
    dismissed = [each for each in decided if not each.approved and each.cell.event_name == SUM]
    written_off = sum(each.amount for each in dismissed)
    proven = sum(n for day in DAYS for n in usage[day].get("acme", {}).values())
    assert billed + written_off == proven
    for month in sorted({day.strftime("%Y-%m") for day in DAYS}):
        code, found = finished(["reconcile", "--month", month], tmp_path / "reconcile.json")
        wrong = [row for row in found["rows"] if row["unexplained"]]
        assert (code, wrong, found["problems"]) == (0, [], [])


def resolve(world: World, output: Path) -> None:
    """Approve gates, dismiss amounts, and run until nothing is left to do."""
    for _ in range(6):
        code, document = finished(["run", *SPAN], output)
        assert code in (0, 1), document
        context = world.context("resolving")
        gates = [str(gate.day) for gate in closed_gates(context, DAYS)]
        waiting = [each.id for each in open_adjustments(context)]
        context.close()
        for day in gates:
            finished(["gate", "approve", "--day", day, "--reason", "resolved"], output)
        if waiting:
            finished(["adjustments", "dismiss", *waiting, "--reason", "resolved"], output)
        left = [hold for hold in document["held"] if hold["reason"] != "below_zero"]
        if not gates and not waiting and not left and not document["mismatched"]:
            assert document["error"] is None
            return
    pytest.fail(f"it does not resolve: {json.dumps({**document, 'days': []})[:3000]}")
