"""Billing periods that begin and end inside usage days: both are right to the reading."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from billing_pipeline.ledger import queries
from billing_pipeline.operations.bill import report_days, verify_days
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.periods import closing_days
from billing_pipeline.rules.holds import Hold, HoldReason
from billing_pipeline.rules.model import Meter, MeterEvent, RecordedEvent, State, Usage, Waiting
from billing_pipeline.rules.planning import PlanOptions
from billing_pipeline.rules.segments import Segment, segments_between
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.usage.segments import usage_in_segments
from tests.rules import support as rules
from tests.rules.support import DAY, END, NOON, START, SUM_BY_DAY, halves, plan_segments
from tests.support import LAST, SUM, World, yesterday

# Planning ----------------------------------------------------------------------------------------


def plan(meter: Meter, segments: list[Segment], *events: RecordedEvent, **more: Any) -> list[Any]:
    return list(plan_segments(meter, segments, events, **more))


def test_a_day_has_segments_between_the_boundaries_inside_it() -> None:
    assert segments_between(DAY, []) == [(START, END)]
    boundaries = [START, END, NOON, NOON, START - 5]
    assert segments_between(DAY, boundaries) == [(START, NOON), (NOON, END)]


@pytest.mark.parametrize("meter", [rules.SUM, rules.LAST])
def test_each_segment_is_reported_inside_itself(meter: Meter) -> None:
    first, second = plan(meter, halves(3, 4))
    assert (first.value, first.timestamp) == (3, NOON - 3600)
    assert (second.value, second.timestamp) == (4, END - 3600)


def test_usage_reported_before_the_boundary_was_known_is_corrected_by_segment() -> None:
    whole = RecordedEvent(1, "cus", 7, 7, END - 3600, State.VERIFIED)
    first, second = plan(rules.SUM, halves(3, 4), whole)
    assert (first.revision, first.value) == (2, 3)
    assert second.value == -3
    done = RecordedEvent(2, "cus", 3, 3, first.timestamp, State.ACCEPTED)
    [second] = plan(rules.SUM, halves(3, 4), whole, done)
    assert (second.revision, second.value, second.timestamp) == (3, -3, END - 3599)


def test_a_segment_that_has_ended_is_reported_before_its_day_ends() -> None:
    afternoon = datetime.fromtimestamp(NOON + 60, UTC)
    first, second = plan(rules.SUM, halves(3, 4), now=afternoon)
    assert isinstance(first, MeterEvent)
    assert isinstance(second, Hold)
    assert (second.reason, second.start) == (HoldReason.DAY_NOT_OVER, NOON)


def test_a_segment_of_one_second_has_a_timestamp_of_its_own() -> None:
    segments = [Segment(START, START + 1, Usage(1, 1)), Segment(START + 1, END, Usage(1, 1))]
    first, _ = plan(rules.SUM, segments)
    assert first.timestamp == START


def test_a_meter_with_a_daily_window_reports_only_the_last_segment() -> None:
    hold, reported = plan(SUM_BY_DAY, halves(3, 4))
    assert isinstance(hold, Hold)
    assert (hold.value, hold.reason) == (3, HoldReason.DAILY_WINDOW)
    assert (reported.value, reported.timestamp) == (4, END - 3600)


def test_an_unresolved_event_makes_the_whole_cell_wait() -> None:
    sending = RecordedEvent(1, "cus", 3, 3, NOON - 3600, State.SENDING)
    assert isinstance(plan(rules.SUM, halves(3, 4), sending)[0], Waiting)


# Counting ----------------------------------------------------------------------------------------


def write(world: World, day: date, rows: list[tuple[str, str, float]]) -> None:
    """Readings as (organization, sensor, hour of the day)."""
    folder = world.home / "readings" / f"reading_date={day}"
    folder.mkdir(parents=True, exist_ok=True)
    midnight = datetime.fromtimestamp(day_start(day), UTC)
    with (folder / "readings.jsonl").open("w") as file:
        for organization, sensor, hour in rows:
            at = (midnight + timedelta(hours=hour)).isoformat()
            row = {"organization_id": organization, "sensor_id": sensor, "recorded_at": at}
            file.write(json.dumps(row) + "\n")


def test_segments_are_counted_to_the_instant_and_over_the_window(world: World) -> None:
    day = yesterday()
    write(world, day - timedelta(days=1), [("a", "old", 11.9), ("a", "recent", 12.0)])
    write(world, day, [
        ("a", "s", 1), ("a", "s", 1), ("a", "s", 11.999), ("a", "s", 12), ("a", "t", 20),
        ("b", "u", 5), ("a", " ", 3),
    ])  # fmt: skip
    context = world.context()
    halves = [(0, 43_200), (43_200, 86_400)]
    found = usage_in_segments(
        context.engine, context.readings, context.snapshots, day, {"a": halves, "none": halves}
    )
    # At noon: s of today, and what was read at or after yesterday's noon.
    assert found == {"a": [(2, 2), (2, 2)], "none": [(0, 0), (0, 0)]}


# From readings to invoices -----------------------------------------------------------------------


@pytest.fixture
def renewing(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[World, str, date, int]:
    """Two organizations; the period of one ended yesterday at 14:30:07, its invoice a draft for
    three days. Readings before and after."""
    monkeypatch.setattr("billing_pipeline.sandbox.billing.GRACE_SECONDS", 72 * 3600)
    world.make_meters()
    world.make_customers(["acme", "steady"])
    day = yesterday()
    end = day_start(day) + 52_207
    begun = datetime.fromtimestamp(end, UTC)
    start = begun.replace(year=begun.year - 1)
    price = []
    for meter in world.sandbox.account.meters.values():
        recurring = {"interval": "year", "meter": meter["id"]}
        made = world.sandbox.billing.make_price({"currency": "usd", "recurring": recurring})
        price.append({"price": made["id"]})
    started = str(int(start.timestamp()))
    world.sandbox.billing.subscribe(
        {"customer": world.customers["acme"], "items": price, "backdate_start_date": started}
    )
    rows = [("acme", "early", 1), ("acme", "early", 14.5), ("acme", "late", 14.6)]
    rows += [("acme", "late", hour) for hour in (15, 16, 17)] + [("steady", "x", 3)]
    write(world, day, rows)
    return world, world.customers["acme"], day, end


def in_period(world: World, customer: str, meter: str, start: int, end: int) -> int:
    """What Stripe would bill for [start, end)."""
    counted = [
        e for e in world.sandbox.account.counted(customer, meter) if start <= e.timestamp < end
    ]
    if meter == SUM:
        return sum(e.value for e in counted)
    return max(counted, key=lambda e: e.timestamp).value if counted else 0


def test_both_periods_get_the_readings_inside_them(renewing: tuple[World, str, date, int]) -> None:
    world, customer, day, end = renewing
    far = 10**11
    world.receive()
    world.bill([day])
    assert in_period(world, customer, SUM, 0, end) == 2
    assert in_period(world, customer, SUM, end, far) == 4
    assert in_period(world, customer, LAST, 0, end) == 1
    assert in_period(world, customer, LAST, end, far) == 2
    assert world.billed()[world.customers["steady"], SUM, day] == 1
    assert unfinished_days(world.context()) == []
    seen = world.sandbox.seen["meter_events"]
    world.bill([day])
    assert world.sandbox.seen["meter_events"] == seen


def test_a_boundary_that_is_learned_late_is_corrected_segment_by_segment(
    renewing: tuple[World, str, date, int],
) -> None:
    world, customer, day, end = renewing
    world.bill([day])  # no webhook has come: the day is reported whole, inside the next period
    assert in_period(world, customer, SUM, 0, end) == 0
    world.apply()
    assert unfinished_days(world.context()) == [day]
    report_days(world.context(), [day])
    verify_days(world.context(), [day])
    assert in_period(world, customer, SUM, 0, end) == 2
    assert in_period(world, customer, SUM, end, 10**11) == 4
    assert in_period(world, customer, LAST, 0, end) == 1
    assert unfinished_days(world.context()) == []


def test_a_refusal_is_not_hidden_by_a_correction_of_another_segment(
    renewing: tuple[World, str, date, int],
) -> None:
    world, customer, day, end = renewing
    world.receive()
    world.bill([day])
    [lost] = [e for e in world.sandbox.account.counted(customer, SUM) if e.timestamp < end]
    lost.counted = False
    world.report_errors("meter_event_invalid_value", lost.identifier)
    world.apply()
    late = [("acme", "late", hour) for hour in (14.6, 15, 16, 17, 18, 19)]
    write(world, day, [("acme", "early", 1), ("acme", "early", 14.5), *late])
    world.bill([day])
    assert in_period(world, customer, SUM, end, 10**11) == 6
    assert [event["value"] for event in world.rejected(day)] == [2]
    assert unfinished_days(world.context()) == []
    report_days(world.context(), [day], options=PlanOptions(retry_rejected=True))
    assert in_period(world, customer, SUM, 0, end) == 2
    assert world.rejected(day) == []


def test_a_lost_value_before_a_boundary_is_not_hidden_by_the_value_after_it(
    renewing: tuple[World, str, date, int],
) -> None:
    world, customer, day, end = renewing
    world.receive()
    context = world.snapshot(day)
    report_days(context, [day])
    counted = world.sandbox.account.counted(customer, LAST)
    [lost] = [e for e in counted if day_start(day) <= e.timestamp < end]
    lost.counted = False
    world.advance(hours=2)
    found = world.verify([day])
    # The day's figure is the later segment's value, and agrees; the earlier segment's does not.
    [wrong] = found.mismatched
    assert (wrong.figure.event_name, wrong.figure.expected, wrong.reported) == (LAST, 1, "0")
    assert wrong.figure.segment == (day_start(day), end)
    assert world.states(day)["accepted"] == 1
    [shown] = context.ledger.read(queries.checks, [day], "mismatch")
    assert (shown["expected"], shown["reported"]) == (1, "0")


def test_an_equal_value_before_a_boundary_does_not_pass_for_the_one_after_it(
    renewing: tuple[World, str, date, int],
) -> None:
    world, customer, day, end = renewing
    write(world, day, [("acme", "early", 1), ("acme", "early", 15)])
    world.receive()
    context = world.snapshot(day)
    report_days(context, [day])
    [lost] = [e for e in world.sandbox.account.counted(customer, LAST) if e.timestamp >= end]
    lost.counted = False
    world.advance(hours=2)
    [wrong] = world.verify([day]).mismatched
    assert (wrong.figure.expected, wrong.reported) == (1, "0")
    assert wrong.figure.segment == (end, day_end(day))


def test_a_boundary_that_is_learned_late_divides_even_a_day_that_is_too_old(
    renewing: tuple[World, str, date, int],
) -> None:
    world, customer, day, end = renewing
    world.bill([day])  # no webhook has come
    assert in_period(world, customer, SUM, end, 10**11) == 6
    world.advance(days=40)
    assert day not in unfinished_days(world.context())
    world.apply()
    assert day in unfinished_days(world.context())
    report_days(world.context(), [day])
    holds = {(hold.cell.event_name, hold.value) for hold in world.holds(day)}
    assert (SUM, 2) in holds  # owed to the period that ended, and shown as late
    assert day not in unfinished_days(world.context())


def test_the_segment_before_the_boundary_is_reported_while_its_invoice_is_a_draft(
    world: World,
) -> None:
    world.make_meters()
    world.make_customers(["acme"])
    customer, today = world.customers["acme"], world.clock().date()
    noon = day_start(today) + 43_200
    subscription = world.make_subscription(
        customer, backdate_start_date=str(day_start(today) - 86_400)
    )
    world.end_period(subscription, noon)
    write(world, today, [("acme", "s", hour) for hour in (1, 5, 11, 12.25)])
    world.advance(seconds=noon + 1200 - world.sandbox.clock())
    world.receive()
    world.apply()
    assert today in closing_days(world.context())
    world.bill([today])
    assert in_period(world, customer, SUM, 0, noon) == 3
    assert in_period(world, customer, SUM, noon, 10**11) == 0
    write(world, today, [("acme", "s", hour) for hour in (1, 5, 11, 11.5, 12.25)])  # one came late
    world.bill([today])
    assert in_period(world, customer, SUM, 0, noon) == 4
    world.advance(hours=1)
    world.apply()
    [invoice] = world.sandbox.billing.invoices.values()
    assert world.sandbox.billing.quantities()[customer, SUM, invoice["period_start"]] == 4
    assert world.sandbox.billing.quantities()[customer, LAST, invoice["period_start"]] == 1
    world.advance(seconds=day_end(today) + 600 - world.sandbox.clock())
    write(world, today, [("acme", "s", hour) for hour in (1, 5, 11, 11.5, 11.75, 12.25, 13)])
    world.bill([today])
    assert in_period(world, customer, SUM, noon, 10**11) == 2
    [hold] = [h for h in world.holds(today) if h.cell.event_name == SUM]
    assert (hold.reason, hold.value) == ("period_closed", 1)


def test_a_hold_of_a_day_that_is_not_over_says_which_segment_it_is_of(world: World) -> None:
    """Yesterday's sensor is active at noon; the period ended then, and its invoice is final."""
    world.make_meters()
    world.make_customers(["acme"])
    today = world.clock().date()
    noon = day_start(today) + 43_200
    subscription = world.make_subscription(
        world.customers["acme"], backdate_start_date=str(day_start(today) - 5 * 86_400)
    )
    world.end_period(subscription, noon)
    write(world, today - timedelta(days=1), [("acme", "s", hour) for hour in range(24)])
    world.advance(seconds=noon + 7200 - world.sandbox.clock())
    world.apply()
    world.bill([today])
    [hold] = world.holds(today)
    assert (hold.cell.event_name, hold.value, hold.reason) == (LAST, 1, "period_closed")
    assert hold.start == day_start(today)
    world.advance(seconds=day_end(today) + 600 - world.sandbox.clock())
    world.bill([today])
    assert [each.start for each in world.holds(today)] == [day_start(today)]


def test_on_the_day_of_a_cancellation_usage_counts_up_to_its_instant(world: World) -> None:
    day = yesterday()
    world.make_meters()
    world.make_customers(["acme"])
    customer, ended = world.customers["acme"], day_start(day) + 36_000
    subscription = world.make_subscription(
        customer, backdate_start_date=str(day_start(day) - 5 * 86_400)
    )["id"]
    write(world, day, [("acme", "s", hour) for hour in (1, 9, 10, 11, 12)])
    world.advance(seconds=2)
    world.sandbox.billing.change_subscription(
        subscription, "customer.subscription.deleted", status="canceled", ended_at=ended
    )
    world.receive()
    world.bill([day])
    assert in_period(world, customer, SUM, 0, ended) == 2
    assert in_period(world, customer, SUM, ended, 10**11) == 0
    holds = {hold.cell.event_name: (hold.reason, hold.value) for hold in world.holds(day)}
    assert holds == {SUM: ("subscription_ended", 3), LAST: ("subscription_ended", 1)}
