"""Several processes at once: no cell reported twice, one deliverer at a time, on both databases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from billing_pipeline.database import open_database
from billing_pipeline.ledger.events import recorded_events
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.ledger.locks import DeliveryBusy, delivery_lock
from billing_pipeline.ledger.plans import write_plan
from billing_pipeline.ledger.tables import meter_events
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.model import Usage
from tests.rules.support import DAY, LAST, NOW, SUM, plan_day
from tests.support import eventually

METERS = [SUM, LAST]
ORGANIZATIONS = [f"org-{n}" for n in range(40)]
SPAWN = multiprocessing.get_context("spawn")


def plan_again_and_again(url: str, run: str, start: Any) -> None:
    ledger = Ledger(open_database(url), run)
    usage = {organization: Usage(1, 10) for organization in ORGANIZATIONS}
    customers = {organization: f"cus-{organization}" for organization in ORGANIZATIONS}
    start.wait(30)
    for _ in range(10):
        with ledger.planning() as writer:
            recorded = recorded_events(writer.connection, [DAY])[DAY]
            plan = plan_day(METERS, usage, Payers(customers), recorded)
            write_plan(writer, plan, lambda cell: True, None, NOW)


def keep_the_lock(url: str, held: Any) -> None:
    with delivery_lock(open_database(url)):
        held.set()
        time.sleep(60)


def run_processes(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
    processes = [SPAWN.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_processes_that_plan_the_same_day_report_each_cell_once(
    engine: Engine, database_url: str
) -> None:
    start = SPAWN.Barrier(4)
    run_processes(plan_again_and_again, [(database_url, f"run-{n}", start) for n in range(4)])
    with engine.begin() as connection:
        events = connection.scalar(select(func.count()).select_from(meter_events))
        runs = connection.scalar(select(func.count(meter_events.c.planned_by.distinct())))
    assert events == len(ORGANIZATIONS) * len(METERS)
    assert runs is not None
    assert runs >= 1


def test_one_process_delivers_at_a_time_and_a_killed_one_releases_the_lock(
    engine: Engine, database_url: str
) -> None:
    held = SPAWN.Event()
    process = SPAWN.Process(target=keep_the_lock, args=(database_url, held))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(DeliveryBusy), delivery_lock(engine, wait_seconds=0.5):
            pass
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)

        def free() -> bool:
            try:
                with delivery_lock(engine, wait_seconds=0.1):
                    return True
            except DeliveryBusy:
                return False

        eventually(free, 20, "the lock of a killed process is free")
    finally:
        process.kill()
        process.join(30)
