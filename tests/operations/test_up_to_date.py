"""A day at rest is not planned again; whatever is said of it, or is to be said, ends its rest.

Counting a day ends it too: these report are made from the snapshot that lies there.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest

from billing_pipeline.operations import bill
from billing_pipeline.rules.timestamps import day_start
from tests.support import World, yesterday

SUM, LAST = "temperature_readings", "active_sensors"
USAGE = {"acme": {"s": 3, "t": 2}, "bolt": {"u": 4}}


@pytest.fixture
def day(world: World) -> date:
    """Yesterday, billed and verified."""
    world.make_meters()
    world.make_customers(list(USAGE))
    world.write_readings(yesterday(), USAGE)
    world.bill([yesterday()])
    world.sandbox.seen.clear()
    return yesterday()


def state_again(world: World, day: date, *, retry_rejected: bool = False) -> bill.ReportOutcome:
    """Report the day from the snapshot that lies there, and verify it."""
    reported = bill.report_days(world.context(), [day], retry_rejected=retry_rejected)
    reporting.verify_days(world.context(), [day])
    return reported


def test_it_is_not_planned_cell_by_cell_and_nothing_is_asked_of_stripe(
    world: World, day: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_day(*_: object, **__: object) -> None:
        pytest.fail("a day at rest was planned again")

    monkeypatch.setattr(reporting, "plan_day", plan_day)
    again = state_again(world, day)
    assert (again.sent, again.not_planned) == (0, {})
    assert again.planned_from.keys() == {day}
    assert (world.sandbox.seen["meter_events"], world.sandbox.seen["summaries"]) == (0, 0)


def test_what_somebody_stated_by_hand_is_corrected_to_what_the_readings_prove(
    world: World, day: date
) -> None:
    late = datetime.fromtimestamp(day_start(day) + 86_400 - 600, UTC)
    reported = world.context("by hand").reporter().report_active_sensors("acme", 28, at=late)
    assert reported.success
    assert world.billed()[world.customers["acme"], LAST, day] == 28
    state_again(world, day)
    assert world.billed() == world.due({day: USAGE})


def test_a_meter_that_is_new_is_stated_when_a_person_runs_the_day(
    world: World, day: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters = [
        {"event_name": SUM, "formula": "sum", "measure": "reading_volume"},
        {"event_name": LAST, "formula": "last", "measure": "active_sensors"},
        {"event_name": "readings_too", "formula": "sum", "measure": "reading_volume"},
    ]
    monkeypatch.setenv("BILLING_METERS", json.dumps(meters))
    world.make_meter("readings_too", "sum")
    assert day not in reporting.unfinished_days(world.context())
    state_again(world, day)
    assert world.billed()[world.customers["acme"], "readings_too", day] == 5
    assert world.sandbox.seen["meter_events"] == 2


def test_what_stripe_rejects_afterwards_is_looked_at_again(world: World, day: date) -> None:
    meter = next(m for m in world.sandbox.account.meters.values() if m["event_name"] == SUM)
    lost = next(e for e in world.sandbox.account.events if (e.event_name, e.value) == (SUM, 5))
    lost.counted = False
    world.sandbox.account.outbox.report_errors(
        meter["id"], {"archived_meter": [(lost.identifier, "")]}, world.sandbox.clock()
    )
    world.apply()
    state_again(world, day, retry_rejected=True)
    assert world.billed() == world.due({day: USAGE})
