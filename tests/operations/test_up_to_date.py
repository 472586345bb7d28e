"""A day that is up to date is not planned again; any change of its inputs makes it stale.

Counting a day makes it stale, too: these tests report from the snapshot that there is.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest

from billing_pipeline.operations import bill
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.reporter import UsageReporter
from billing_pipeline.rules.planning import NO_OPTIONS, PlanOptions
from billing_pipeline.rules.timestamps import day_end
from tests.support import LAST, SUM, World, yesterday

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


def report_again(world: World, day: date, options: PlanOptions = NO_OPTIONS) -> bill.ReportOutcome:
    """Report the day from the snapshot that there is, and verify it."""
    outcome = bill.report_days(world.context(), [day], options=options)
    bill.verify_days(world.context(), [day])
    return outcome


def test_it_is_not_planned_and_nothing_is_asked_of_stripe(
    world: World, day: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_day(*_: object) -> None:
        pytest.fail("a day that is up to date was planned again")

    monkeypatch.setattr(bill, "_plan_day", plan_day)
    again = report_again(world, day)
    assert (again.sent, again.not_planned) == (0, {})
    assert again.planned_from.keys() == {day}
    assert (world.sandbox.seen["meter_events"], world.sandbox.seen["summaries"]) == (0, 0)


def test_a_count_that_somebody_reported_by_hand_is_corrected_to_the_readings(
    world: World, day: date
) -> None:
    late = datetime.fromtimestamp(day_end(day) - 600, UTC)
    reporter = UsageReporter(world.context("by hand"))
    assert reporter.report_active_sensors("acme", 28, at=late).success
    assert world.billed()[world.customers["acme"], LAST, day] == 28
    report_again(world, day)
    assert world.billed() == world.due({day: USAGE})


def test_a_new_meter_makes_every_counted_day_stale(
    world: World, day: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters = [
        {"event_name": SUM, "formula": "sum", "measure": "reading_volume"},
        {"event_name": LAST, "formula": "last", "measure": "active_sensors"},
        {"event_name": "readings_too", "formula": "sum", "measure": "reading_volume"},
    ]
    monkeypatch.setenv("BILLING_METERS", json.dumps(meters))
    world.make_meter("readings_too", "sum")
    assert unfinished_days(world.context()) == [day]
    report_again(world, day)
    assert world.billed()[world.customers["acme"], "readings_too", day] == 5
    assert world.sandbox.seen["meter_events"] == 2


def test_an_event_that_stripe_rejects_later_makes_its_day_stale(world: World, day: date) -> None:
    world.report_errors("archived_meter", world.lose(5).identifier)
    world.apply()
    report_again(world, day, PlanOptions(retry_rejected=True))
    assert world.billed() == world.due({day: USAGE})
