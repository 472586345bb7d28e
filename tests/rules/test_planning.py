"""The planning rules by example: each row of the table, each reason to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.holds import Hold, HoldReason
from billing_pipeline.rules.model import (
    NOT_COUNTED,
    Formula,
    Measure,
    Meter,
    MeterEvent,
    State,
    Usage,
    Waiting,
)
from billing_pipeline.rules.values import UsageDefect
from billing_pipeline.stripe_facts import LARGEST_VALUE
from tests.rules.support import (
    END,
    LAST,
    LAST_BY_DAY,
    NOW,
    SUM,
    SUM_BY_DAY,
    cell,
    plan_day,
    plan_event,
    plan_hold,
    plan_one,
    recorded,
)

REFUSED: dict[str, Any] = {"state": State.REJECTED, "error_code": "meter_event_customer_not_found"}


@pytest.mark.parametrize("meter", [SUM, LAST, SUM_BY_DAY, LAST_BY_DAY])
def test_the_first_report_is_the_target(meter: Meter) -> None:
    event = plan_event(meter, 7)
    assert (event.value, event.revision, event.customer) == (7, 1, "cus")


@pytest.mark.parametrize(
    ("meter", "value"), [(SUM, -3), (LAST, 4), (SUM_BY_DAY, 4), (LAST_BY_DAY, 4)]
)
def test_a_correction_is_a_difference_on_a_sum_and_the_target_elsewhere(
    meter: Meter, value: int
) -> None:
    event = plan_event(meter, 4, recorded(7))
    assert (event.value, event.revision, event.target) == (value, 2, 4)


@pytest.mark.parametrize("meter", [SUM, LAST, SUM_BY_DAY, LAST_BY_DAY])
def test_a_recorded_target_is_not_reported_again(meter: Meter) -> None:
    assert plan_one(meter, 7, recorded(7)) is None


def test_a_sum_adds_up_all_that_was_accepted() -> None:
    assert plan_event(SUM, 10, recorded(7, -3)).value == 6


def test_a_first_zero_is_reported_on_a_last_meter_and_not_on_a_sum() -> None:
    assert isinstance(plan_one(LAST, 0), MeterEvent)
    assert isinstance(plan_one(LAST_BY_DAY, 0), MeterEvent)
    assert plan_one(SUM, 0) is None
    assert plan_one(SUM_BY_DAY, 0) is None


def test_an_event_that_was_rejected_later_is_not_recorded_at_stripe() -> None:
    first, second = recorded(7, -3)
    second = replace(second, target=4, state=State.REJECTED, error_code="archived_meter")
    event = plan_event(SUM, 5, [first, second])
    assert (event.value, event.revision) == (-2, 3)


def test_a_refused_report_is_not_repeated_unless_asked_for() -> None:
    refused = recorded(7, **REFUSED)
    assert plan_one(SUM, 7, refused) is None
    assert isinstance(plan_one(SUM, 7, refused, retry_rejected=True), MeterEvent)
    assert isinstance(plan_one(SUM, 8, refused), MeterEvent)


def test_a_refused_report_is_made_again_for_another_customer() -> None:
    event = plan_event(SUM, 7, recorded(7, **REFUSED), customer="cus_2")
    assert (event.customer, event.revision) == ("cus_2", 2)


def test_an_event_that_was_never_counted_is_reported_again() -> None:
    event = plan_event(SUM, 7, recorded(7, state=State.REJECTED, error_code=NOT_COUNTED))
    assert (event.value, event.revision) == (7, 2)


@pytest.mark.parametrize("state", [State.SENDING, State.AMBIGUOUS])
def test_a_cell_whose_event_may_have_been_counted_waits(state: State) -> None:
    assert isinstance(plan_one(SUM, 9, recorded(7, state=state)), Waiting)


def test_a_planned_event_is_kept_if_it_would_be_planned_again() -> None:
    assert isinstance(plan_one(SUM, 7, recorded(7, state=State.PLANNED)), Waiting)


@pytest.mark.parametrize(
    ("target", "customer", "value"), [(9, "cus", 9), (7, "cus_2", 7), (0, "cus", None)]
)
def test_a_planned_event_that_is_no_longer_right_is_superseded(
    target: int, customer: str, value: int | None
) -> None:
    history = {cell(SUM): recorded(7, state=State.PLANNED)}
    planned = plan_day([SUM], {"org": Usage(1, target)}, Payers({"org": customer}), history)
    assert planned.superseded == [(cell(SUM), 1)]
    assert [(e.value, e.customer, e.revision) for e in planned.events] == (
        [] if value is None else [(value, customer, 2)]
    )


def test_a_customer_that_a_day_was_reported_for_is_shared_with_its_next_organization() -> None:
    reported = {cell(LAST, "old"): recorded(7)}  # for cus
    mapping = Payers({"old": "cus_new", "other": "cus"})
    planned = plan_day([LAST], {"old": Usage(9), "other": Usage(2)}, mapping, reported)
    assert [(e.cell.organization_id, e.customer) for e in planned.events] == [("old", "cus")]
    assert [(h.cell.organization_id, h.reason) for h in planned.holds] == [
        ("other", HoldReason.CUSTOMER_SHARED)
    ]


@pytest.mark.parametrize("customer", ["cus_other", None])
def test_a_cell_keeps_the_customer_of_its_first_report(customer: str | None) -> None:
    assert plan_event(SUM, 9, recorded(7), customer=customer).customer == "cus"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"customer": None}, HoldReason.NO_CUSTOMER),
        ({"now": datetime(2026, 3, 10, 23, 59, 59, tzinfo=UTC)}, HoldReason.DAY_NOT_OVER),
        ({"now": NOW + timedelta(days=35)}, HoldReason.TOO_OLD),
    ],
)
def test_usage_that_cannot_be_reported_is_on_hold(
    options: dict[str, Any], reason: HoldReason
) -> None:
    hold = plan_hold(SUM, 7, **options)
    assert (hold.reason, hold.value, hold.target) == (reason, 7, 7)


def test_a_late_correction_is_on_hold_with_the_difference() -> None:
    hold = plan_hold(SUM, 5, recorded(7), now=NOW + timedelta(days=40))
    assert (hold.reason, hold.value) == (HoldReason.TOO_OLD, -2)


def test_thirty_four_days_are_the_limit() -> None:
    limit = datetime.fromtimestamp(END - 3600, UTC) + timedelta(days=34)
    plan_event(SUM, 7, now=limit)
    plan_hold(SUM, 7, now=limit + timedelta(seconds=1))


def test_a_shared_customer_is_a_hold_only_where_values_replace_each_other() -> None:
    assert plan_hold(LAST, 7, shared=True).reason is HoldReason.CUSTOMER_SHARED
    plan_event(SUM, 7, shared=True)
    plan_event(LAST, 9, recorded(7), shared=True)


def test_no_second_of_the_day_left_is_a_hold() -> None:
    history = [replace(recorded(7)[0], timestamp=END - 1)]
    assert plan_hold(LAST, 8, history).reason is HoldReason.NO_ROOM_IN_DAY


@pytest.mark.parametrize("target", [-1, 1.0, float("nan"), True, "7", None, LARGEST_VALUE + 1])
def test_usage_that_no_counting_can_produce_raises(target: Any) -> None:
    with pytest.raises(UsageDefect):
        plan_one(SUM, target)


def test_values_are_sent_as_plain_integers_under_the_keys_of_the_meter() -> None:
    meter = Meter("m", Formula.SUM, Measure.READING_VOLUME, None, "cust", "amount")
    event = plan_event(meter, LARGEST_VALUE)
    assert event.payload(meter) == {"cust": "cus", "amount": "9" * 15}


def test_a_day_covers_the_snapshot_the_mapped_and_the_reported() -> None:
    planned = plan_day(
        [SUM, LAST],
        {"busy": Usage(2, 50), "unmapped": Usage(1, 5)},
        Payers({"busy": "cus_b", "idle": "cus_i", "gone": "cus"}),
        {cell(SUM, "gone"): recorded(9)},
    )

    def values(outcomes: Sequence[MeterEvent | Hold]) -> dict[tuple[str, str], int]:
        return {(o.cell.organization_id, o.cell.event_name): o.value for o in outcomes}

    assert values(planned.events) == {
        ("busy", "temperature_readings"): 50,
        ("busy", "active_sensors"): 2,
        ("idle", "active_sensors"): 0,
        ("gone", "active_sensors"): 0,
        ("gone", "temperature_readings"): -9,
    }
    assert values(planned.holds) == {
        ("unmapped", "temperature_readings"): 5,
        ("unmapped", "active_sensors"): 1,
    }
