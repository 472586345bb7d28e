"""A day corrected up and down, on all kinds of meters, as Stripe then bills it."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.bill import report_days
from billing_pipeline.operations.preview import preview_days
from tests.support import LAST, SUM, World, yesterday


@pytest.mark.parametrize(
    ("sensors_window", "readings_window"), list(itertools.product([None, "day"], repeat=2))
)
def test_a_day_is_corrected_up_down_to_nothing_and_up_again(
    world: World, sensors_window: str | None, readings_window: str | None
) -> None:
    world.make_meter(LAST, "last", sensors_window)
    world.make_meter(SUM, "sum", readings_window)
    world.make_customers(["a", "steady"])
    day = yesterday()
    for sensors in [{"s": 3}, {"s": 3, "t": 9}, {"s": 1}, {}, {"s": 2, "t": 2, "u": 2}, {"s": 3}]:
        usage = {day: {"a": sensors, "steady": {"x": 4}}}
        world.write_readings(day, usage[day])
        world.bill([day])
        assert world.billed() == world.due(usage)
        assert world.verify([day]).mismatched == []
        requests = world.sandbox.seen["meter_events"]
        world.bill([day])
        assert world.sandbox.seen["meter_events"] == requests
    assert sum(e.customer == world.customers["steady"] for e in world.sandbox.account.events) == 2


def test_a_correction_after_thirty_hours_and_another_after_thirty_days(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    day = yesterday()
    for pause, sensors in [(0, {"s": 5}), (30, {"s": 3}), (30 * 24, {"s": 4, "t": 4})]:
        world.advance(hours=pause)
        usage = {day: {"a": sensors}}
        world.write_readings(day, usage[day])
        world.bill([day])
        assert world.billed() == world.due(usage)


def test_usage_older_than_34_days_is_counted_and_on_hold_with_the_difference(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    day = yesterday()
    world.write_readings(day, {"a": {"s": 5}})
    world.bill([day])
    world.advance(days=35)
    world.write_readings(day, {"a": {"s": 2, "t": 1}})
    world.bill([day])
    holds = {hold.cell.event_name: (hold.value, hold.reason) for hold in world.holds(day)}
    assert holds == {SUM: (-2, "too_old"), LAST: (2, "too_old")}
    world.write_readings(day, {"a": {"s": 5}})  # the late change is taken back
    world.bill([day])
    assert world.holds(day) == []


def test_a_preview_shows_old_new_and_difference_and_changes_nothing(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    day = yesterday()
    world.write_readings(day, {"a": {"s": 5}})
    world.bill([day])
    world.write_readings(day, {"a": {"s": 2}, "b": {"x": 1}})
    preview = preview_days(world.snapshot(day), [day - timedelta(days=1), day])
    assert preview.missing == [day - timedelta(days=1)]
    shown = {
        (x.organization_id, x.meter): (x.action, x.before, x.target, x.value) for x in preview.lines
    }
    cause = preview.causes[day]
    assert [(f.name, f.change, f.rows_before, f.rows) for f in cause.files] == [
        ("readings.jsonl", "changed", 5, 3)
    ]
    assert cause.counts == {"readings": (5, 3)}
    assert shown == {
        ("a", SUM): ("correct", 5, 2, -3),
        ("b", SUM): ("hold", None, 1, 1),
        ("b", LAST): ("hold", None, 1, 1),
    }
    assert world.states(day) == {"verified": 2}


@pytest.mark.parametrize(
    ("formula", "window", "message"),
    [("last", None, "formula last"), ("count", None, "formula count"), ("sum", "hour", "hour")],
)
def test_a_meter_that_differs_is_refused_before_anything_is_sent(
    world: World, formula: str, window: str | None, message: str
) -> None:
    world.make_meter(LAST, "last")
    world.make_meter(SUM, formula, window)
    world.make_customers(["a"])
    day = yesterday()
    world.write_readings(day, {"a": {"s": 5}})
    context = world.snapshot(day)
    with pytest.raises(ConfigurationError, match=message):
        report_days(context, [day])
    assert world.sandbox.account.events == []
    assert world.states(day) == {}
