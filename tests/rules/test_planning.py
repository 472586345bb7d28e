"""The planning rules by example: each row of the table, each reason to hold."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.holds import (
    Hold,
    HoldReason,
)
from billing_pipeline.rules.model import (
    NOT_COUNTED,
    Cell,
    Formula,
    Measure,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
    Usage,
    Waiting,
)
from billing_pipeline.rules.planning import (
    plan_cell,
    plan_day,
)
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.rules.values import MAX_VALUE, UsageDefect

DAY = date(2026, 3, 10)
NOW = datetime(2026, 3, 11, 0, 10, tzinfo=UTC)
SUM = Meter("temperature_readings", Formula.SUM, Measure.READING_VOLUME)
LAST = Meter("active_sensors", Formula.LAST, Measure.ACTIVE_SENSORS)
SUM_BY_DAY = Meter("temperature_readings", Formula.SUM, Measure.READING_VOLUME, "day")
LAST_BY_DAY = Meter("active_sensors", Formula.LAST, Measure.ACTIVE_SENSORS, "day")


def cell(meter: Meter, organization: str = "org") -> Cell:
    return Cell(DAY, organization, meter.event_name)


def recorded(*values: int, state: State = State.ACCEPTED, **changes: Any) -> list[RecordedEvent]:
    start = day_start(DAY) + 23 * 3600
    return [
        RecordedEvent(n, "cus_1", value, value, start + n - 1, state, **changes)
        for n, value in enumerate(values, start=1)
    ]


def plan(meter: Meter, target: int, history: list[RecordedEvent], **options: Any) -> Any:
    now = options.pop("now", NOW)
    customer = options.pop("customer", "cus_1")
    return plan_cell(meter, cell(meter), target, customer, history, now, **options)


@pytest.mark.parametrize("meter", [SUM, LAST, SUM_BY_DAY, LAST_BY_DAY])
def test_the_first_statement_is_the_target(meter: Meter) -> None:
    event = plan(meter, 7, [])
    assert isinstance(event, MeterEvent)
    assert (event.value, event.revision, event.customer) == (7, 1, "cus_1")


@pytest.mark.parametrize(
    ("meter", "value"), [(SUM, -3), (LAST, 4), (SUM_BY_DAY, 4), (LAST_BY_DAY, 4)]
)
def test_a_correction_down_is_a_difference_on_a_sum_and_the_target_elsewhere(
    meter: Meter, value: int
) -> None:
    event = plan(meter, 4, recorded(7))
    assert isinstance(event, MeterEvent)
    assert (event.value, event.revision, event.target) == (value, 2, 4)


@pytest.mark.parametrize("meter", [SUM, LAST, SUM_BY_DAY, LAST_BY_DAY])
def test_what_stripe_holds_is_not_said_again(meter: Meter) -> None:
    assert plan(meter, 7, recorded(7)) is None


def test_a_sum_adds_up_all_that_was_accepted() -> None:
    event = plan(SUM, 10, recorded(7, -3))
    assert isinstance(event, MeterEvent)
    assert event.value == 6


def test_a_first_zero_is_stated_on_a_last_meter_and_not_on_a_sum() -> None:
    assert isinstance(plan(LAST, 0, []), MeterEvent)
    assert isinstance(plan(LAST_BY_DAY, 0, []), MeterEvent)
    assert plan(SUM, 0, []) is None
    assert plan(SUM_BY_DAY, 0, []) is None


def test_what_was_rejected_later_is_not_held_by_stripe() -> None:
    history = recorded(7, -3)
    history[1] = RecordedEvent(
        2, "cus_1", -3, 4, history[1].timestamp, State.REJECTED, "archived_meter"
    )
    event = plan(SUM, 5, history)
    assert isinstance(event, MeterEvent)
    assert (event.value, event.revision) == (-2, 3)


def test_a_refused_statement_is_not_repeated_unless_asked_for() -> None:
    refused = recorded(7, state=State.REJECTED, error_code="meter_event_customer_not_found")
    assert plan(SUM, 7, refused) is None
    assert isinstance(plan(SUM, 7, refused, retry_rejected=True), MeterEvent)
    assert isinstance(plan(SUM, 8, refused), MeterEvent)


def test_a_refused_statement_is_made_again_for_another_customer() -> None:
    refused = recorded(7, state=State.REJECTED, error_code="meter_event_customer_not_found")
    event = plan(SUM, 7, refused, customer="cus_2")
    assert isinstance(event, MeterEvent)
    assert (event.customer, event.revision) == ("cus_2", 2)


def test_an_event_that_was_never_counted_is_stated_again() -> None:
    event = plan(SUM, 7, recorded(7, state=State.REJECTED, error_code=NOT_COUNTED))
    assert isinstance(event, MeterEvent)
    assert (event.value, event.revision) == (7, 2)


@pytest.mark.parametrize("state", [State.SENDING, State.AMBIGUOUS])
def test_a_cell_whose_event_may_have_been_counted_waits(state: State) -> None:
    assert isinstance(plan(SUM, 9, recorded(7, state=state)), Waiting)


def test_a_planned_event_stands_while_it_says_what_is_to_be_said() -> None:
    assert isinstance(plan(SUM, 7, recorded(7, state=State.PLANNED)), Waiting)


@pytest.mark.parametrize(
    ("target", "customer", "reported"), [(9, "cus_1", 9), (7, "cus_2", 7), (0, "cus_1", None)]
)
def test_a_planned_event_that_no_longer_holds_is_superseded(
    target: int, customer: str, reported: int | None
) -> None:
    history = {cell(SUM): recorded(7, state=State.PLANNED)}
    planned = plan_day(
        DAY, [SUM], {"org": Usage(1, target)}, Payers({"org": customer}), history, NOW
    )
    assert planned.superseded == [(cell(SUM), 1)]
    assert [(e.value, e.customer, e.revision) for e in planned.events] == (
        [] if reported is None else [(reported, customer, 2)]
    )


def test_a_customer_that_a_day_was_stated_for_is_shared_with_whoever_gets_it_later() -> None:
    reported = {Cell(DAY, "old", LAST.event_name): recorded(7)}  # for cus_1
    mapping = {"old": "cus_new", "other": "cus_1"}
    planned = plan_day(
        DAY, [LAST], {"old": Usage(9), "other": Usage(2)}, Payers(mapping), reported, NOW
    )
    assert [(e.cell.organization_id, e.customer) for e in planned.events] == [("old", "cus_1")]
    assert [(h.cell.organization_id, h.reason) for h in planned.holds] == [
        ("other", HoldReason.CUSTOMER_SHARED)
    ]


def test_a_cell_keeps_the_customer_of_its_first_statement() -> None:
    event = plan(SUM, 9, recorded(7), customer="cus_other")
    assert isinstance(event, MeterEvent)
    assert event.customer == "cus_1"
    assert isinstance(plan(SUM, 9, recorded(7), customer=None), MeterEvent)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"customer": None}, HoldReason.NO_CUSTOMER),
        ({"now": datetime(2026, 3, 10, 23, 59, 59, tzinfo=UTC)}, HoldReason.DAY_NOT_OVER),
        ({"now": NOW + timedelta(days=35)}, HoldReason.TOO_OLD),
    ],
)
def test_usage_that_cannot_be_stated_is_held(options: dict[str, Any], reason: HoldReason) -> None:
    hold = plan(SUM, 7, [], **options)
    assert isinstance(hold, Hold)
    assert (hold.reason, hold.value, hold.target) == (reason, 7, 7)


def test_a_late_correction_is_held_with_the_difference() -> None:
    hold = plan(SUM, 5, recorded(7), now=NOW + timedelta(days=40))
    assert isinstance(hold, Hold)
    assert (hold.reason, hold.value) == (HoldReason.TOO_OLD, -2)


def test_thirty_four_days_are_the_limit() -> None:
    stamp = day_start(DAY) + 23 * 3600
    limit = datetime.fromtimestamp(stamp, UTC) + timedelta(days=34)
    assert isinstance(plan(SUM, 7, [], now=limit), MeterEvent)
    assert isinstance(plan(SUM, 7, [], now=limit + timedelta(seconds=1)), Hold)


def test_a_shared_customer_is_held_where_values_replace_each_other_and_stated_on_a_sum() -> None:
    hold = plan(LAST, 7, [], shared=True)
    assert isinstance(hold, Hold)
    assert hold.reason is HoldReason.CUSTOMER_SHARED
    assert isinstance(plan(SUM, 7, [], shared=True), MeterEvent)
    assert isinstance(plan(LAST, 9, recorded(7), shared=True), MeterEvent)


def test_no_second_of_the_day_left_is_a_hold() -> None:
    history = [RecordedEvent(1, "cus_1", 7, 7, day_end(DAY) - 1, State.ACCEPTED)]
    hold = plan(LAST, 8, history)
    assert isinstance(hold, Hold)
    assert hold.reason is HoldReason.NO_ROOM_IN_DAY


@pytest.mark.parametrize("target", [-1, 1.0, float("nan"), True, "7", None, MAX_VALUE + 1])
def test_usage_that_no_counting_can_produce_raises(target: Any) -> None:
    with pytest.raises(UsageDefect):
        plan(SUM, target, [])


def test_values_go_out_as_plain_integers_under_the_keys_of_the_meter() -> None:
    meter = Meter("m", Formula.SUM, Measure.READING_VOLUME, None, "cust", "amount")
    event = plan_cell(meter, cell(meter), MAX_VALUE, "cus_1", [], NOW)
    assert isinstance(event, MeterEvent)
    assert event.payload(meter) == {"cust": "cus_1", "amount": "9" * 15}


def test_a_day_covers_the_snapshot_the_mapped_and_the_stated() -> None:
    gone = Cell(DAY, "gone", SUM.event_name)
    planned = plan_day(
        DAY,
        [SUM, LAST],
        {"busy": Usage(2, 50), "unmapped": Usage(1, 5)},
        Payers({"busy": "cus_b", "idle": "cus_i", "gone": "cus_1"}),
        {gone: recorded(9)},
        NOW,
    )
    reported = {(e.cell.organization_id, e.cell.event_name): e.value for e in planned.events}
    assert reported == {
        ("busy", "temperature_readings"): 50,
        ("busy", "active_sensors"): 2,
        ("idle", "active_sensors"): 0,
        ("gone", "active_sensors"): 0,
        ("gone", "temperature_readings"): -9,
    }
    held = {(h.cell.organization_id, h.cell.event_name): h.value for h in planned.holds}
    assert held == {("unmapped", "temperature_readings"): 5, ("unmapped", "active_sensors"): 1}
