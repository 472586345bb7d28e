"""People decide while everything dies.

Runs, undoings, approvals and dismissals are killed at random moments, the connections to the
database are cut under them, and in the end every unit is billed or on record.
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
from billing_pipeline.operations import adjust as adjustments
from billing_pipeline.operations.gate import closed_gates
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.faults import Faults
from tests.integration.test_processes import BILLING
from tests.support import World, new_database, yesterday

DAYS = [yesterday() - timedelta(days=n) for n in reversed(range(5))]
CLOSED, OPEN = DAYS[:3], DAYS[3:]
"""Acme's billing period ended with the third day and is invoiced; the others have no period."""

OTHERS = ["b", "c", "d"]
SUM = "temperature_readings"
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

    def boundary() -> None:
        engine = create_engine(maintenance)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
                ),
                {"name": name},
            )
        engine.dispose()

    return boundary


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
    for item in subscription["items"]["data"]:
        item["current_period_end"] = end
    world.sandbox.billing.change_subscription(
        subscription["id"], "customer.subscription.updated", items=subscription["items"]
    )
    world.receive()
    return world


def start(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file, output.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen([*BILLING, *arguments, "--json"], stdout=file, stderr=errors)


def finished(arguments: list[str], output: Path) -> tuple[int, dict[str, Any]]:
    process = start(arguments, output)
    process.wait(180)
    message = output.read_text()
    assert message, output.with_suffix(".err").read_text()[-3000:]
    return process.returncode, json.loads(message)


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
    """A run, or a decision about something that waits."""
    context = world.context("looking")
    with context.ledger.engine.begin() as connection:
        runs = list(connection.scalars(text("SELECT run FROM runs ORDER BY started_at, run")))
    waiting = [each.id for each in adjustments.open_adjustments(context)]
    gates = [str(gate.day) for gate in closed_gates(context)]
    context.close()
    why = ["--reason", "by the test"]
    possible = [["run", *SPAN]] * 2
    possible += [["undo", "--run", run, *why] for run in runs[-1:]]
    verdict = chance.choice(["approve", "dismiss"])
    possible += [["adjustments", verdict, id, *why] for id in waiting[:2]]
    possible += [["gate", "approve", "--day", day, *why] for day in gates[:2]]
    return chance.choice(possible)


def test_whoever_dies_while_people_decide_every_unit_is_billed_or_on_record(
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
    scene.sandbox.stored.clear()  # as after a day: Stripe repeats a stored 500 no more
    resolve(scene, tmp_path / "resolve.json")
    identifiers = [event.identifier for event in scene.sandbox.account.events]
    assert len(identifiers) == len(set(identifiers))
    # Who has no closed period is billed what the readings prove, day by day.
    acme = scene.customers["acme"]
    due = {key: value for key, value in scene.due(usage).items() if key[0] != acme}
    assert {key: value for key, value in scene.billed().items() if key[0] != acme} == due
    # Of the closed period every unit is billed now, or written off by a decision.
    context = scene.context()
    assert context.ledger.read(decided_adjustments)
    billed = sum(v for (who, meter, _), v in scene.billed().items() if (who, meter) == (acme, SUM))
    written_off = sum(
        each.amount
        for each in context.ledger.read(decided_adjustments)
        if not each.approved and each.cell.event_name == SUM
    )
    proven = sum(n for day in DAYS for n in usage[day].get("acme", {}).values())
    assert billed + written_off == proven
    for month in sorted({day.strftime("%Y-%m") for day in DAYS}):
        code, found = finished(["reconcile", "--month", month], tmp_path / "reconcile.json")
        wrong = [row for row in found["rows"] if row["unexplained"]]
        assert (code, wrong, found["problems"]) == (0, [], [])


def resolve(world: World, output: Path) -> None:
    """Let through and decide what waits, and run until nothing is left to do."""
    for _ in range(6):
        code, document = finished(["run", *SPAN], output)
        assert code in (0, 1), document
        context = world.context("resolving")
        gates = [str(gate.day) for gate in closed_gates(context, DAYS)]
        waiting = [each.id for each in adjustments.open_adjustments(context)]
        context.close()
        for day in gates:
            finished(["gate", "approve", "--day", day, "--reason", "resolved"], output)
        if waiting:
            finished(["adjustments", "dismiss", *waiting, "--reason", "resolved"], output)
        left = [held for held in document["held"] if held["reason"] != "below_zero"]
        if not gates and not waiting and not left and not document["mismatched"]:
            assert document["error"] is None
            return
    pytest.fail(f"it does not resolve: {json.dumps({**document, 'days': []})[:3000]}")
