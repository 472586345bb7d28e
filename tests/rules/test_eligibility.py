"""Under which eligibility usage is reported: the policy line by line, and what closes a period."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from billing_pipeline.rules.eligibility import (
    DEFAULT_POLICY,
    Eligibility,
    Payers,
    Period,
    Policy,
    Subscription,
)
from billing_pipeline.rules.holds import (
    Hold,
    HoldReason,
)
from billing_pipeline.rules.model import (
    Cell,
    Formula,
    Measure,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
    Usage,
)
from billing_pipeline.rules.planning import (
    plan_cell,
    plan_day,
)

DAY = date(2026, 3, 10)
NOW = datetime(2026, 3, 11, 0, 10, tzinfo=UTC)
SUM = Meter("readings", Formula.SUM, Measure.READING_VOLUME, meter_id="mtr_r")
LAST = Meter("sensors", Formula.LAST, Measure.ACTIVE_SENSORS, meter_id="mtr_s")


def at(day: int, hour: int = 0) -> int:
    return int(datetime(2026, 3, day, hour, tzinfo=UTC).timestamp())


def subscription(
    status: str, start: int = 1, end: int | None = None, **more: object
) -> Eligibility:
    instant = None if end is None else at(end)
    known = Subscription("sub", DEFAULT_POLICY.get(status), at(start), instant, **more)  # type: ignore[arg-type]
    return Eligibility((known,))


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("active", None),
        ("trialing", None),
        ("past_due", None),
        ("unpaid", None),
        ("canceled", HoldReason.SUBSCRIPTION_ENDED),
        ("incomplete", HoldReason.SUBSCRIPTION_INACTIVE),
        ("incomplete_expired", HoldReason.SUBSCRIPTION_INACTIVE),
        ("paused", HoldReason.SUBSCRIPTION_INACTIVE),
        ("resting", HoldReason.SUBSCRIPTION_UNKNOWN),
        ("", HoldReason.SUBSCRIPTION_UNKNOWN),
    ],
)
def test_each_status_means_what_the_table_says(status: str, reason: HoldReason | None) -> None:
    assert subscription(status).hold_reason("mtr_r", at(10)) == reason


def test_no_known_subscription_is_stated() -> None:
    assert Eligibility().hold_reason("mtr_r", at(10)) is None
    assert Payers({"org": "cus"}).eligibility_of("cus").hold_reason("mtr_r", at(10)) is None


def test_usage_before_a_cancellation_counts_and_after_it_does_not() -> None:
    canceled = subscription("canceled", end=10)
    assert canceled.hold_reason("mtr_r", at(10) - 1) is None
    assert canceled.hold_reason("mtr_r", at(10)) == HoldReason.SUBSCRIPTION_ENDED


def test_an_end_to_come_ends_it_even_when_its_event_is_late() -> None:
    ending = subscription("active", end=10)
    assert ending.hold_reason("mtr_r", at(10) - 1) is None
    assert ending.hold_reason("mtr_r", at(10)) == HoldReason.SUBSCRIPTION_ENDED


def test_a_new_subscription_covers_from_its_start_on_but_not_the_gap() -> None:
    both = Eligibility(
        (
            Subscription("old", Policy.UNTIL_END, at(1), at(5)),
            Subscription("new", Policy.REPORT, at(9)),
        )
    )
    not_eligible = [day for day in range(1, 15) if both.hold_reason("mtr_r", at(day, 12))]
    assert not_eligible == [5, 6, 7, 8]


def test_one_subscription_that_allows_it_is_enough() -> None:
    paused = Subscription("a", Policy.HOLD, at(1))
    active = Subscription("b", Policy.REPORT, at(1))
    assert Eligibility((paused, active)).hold_reason("mtr_r", at(10)) is None


def test_a_subscription_of_other_meters_says_nothing_about_this_one() -> None:
    paused = subscription("paused", meters=frozenset({"mtr_other"}))
    assert paused.hold_reason("mtr_r", at(10)) is None
    assert paused.hold_reason("mtr_other", at(10)) == HoldReason.SUBSCRIPTION_INACTIVE
    licensed_only = subscription("paused", meters=frozenset())
    assert licensed_only.hold_reason("mtr_r", at(10)) is None


def test_a_deleted_customer_is_held_whatever_its_subscription() -> None:
    gone = Eligibility((Subscription("sub", Policy.REPORT, at(1)),), deleted=True)
    assert gone.hold_reason("mtr_r", at(10)) == HoldReason.CUSTOMER_DELETED


def closed(*periods: Period) -> Eligibility:
    known = tuple(Subscription(id, Policy.REPORT, at(1)) for id in ("sub", "other"))
    return Eligibility(known, periods)


def test_a_final_invoice_closes_its_period_and_only_that() -> None:
    eligibility = closed(Period("sub", at(1), at(10), final=True), Period("sub", at(10), at(20)))
    assert eligibility.hold_reason("mtr_r", at(10) - 1) == HoldReason.PERIOD_CLOSED
    assert eligibility.hold_reason("mtr_r", at(10)) is None


def test_a_period_that_another_subscription_still_bills_is_not_closed() -> None:
    eligibility = closed(Period("sub", at(1), at(10), final=True), Period("other", at(1), at(20)))
    assert eligibility.hold_reason("mtr_r", at(5)) is None


def test_a_stale_end_of_the_same_subscription_does_not_keep_a_period_open() -> None:
    eligibility = closed(Period("sub", at(1), at(10), final=True), Period("sub", at(1), at(20)))
    assert eligibility.hold_reason("mtr_r", at(5)) == HoldReason.PERIOD_CLOSED


def plan(
    meter: Meter, payers: Payers, recorded: list[RecordedEvent] | None = None, target: int = 7
) -> object:
    cell = Cell(DAY, "org", meter.event_name)
    return plan_cell(
        meter, cell, target, payers.customers.get("org"), recorded or [], NOW, payers=payers
    )


def test_barred_usage_is_held_with_its_amount_and_a_zero_waits_in_silence() -> None:
    payers = Payers({"org": "cus"}, eligibility={"cus": subscription("paused")})
    held = plan(SUM, payers)
    assert isinstance(held, Hold)
    assert (held.value, held.reason) == (7, HoldReason.SUBSCRIPTION_INACTIVE)
    # Forgotten, it would leave the period with the value of an earlier day.
    zero = plan(LAST, payers, target=0)
    assert isinstance(zero, Hold)
    assert (zero.value, zero.is_silent, held.is_silent) == (0, True, False)
    assert plan(SUM, payers, target=0) is None


def test_the_correction_of_a_closed_period_is_held_and_says_how_much() -> None:
    payers = Payers({"org": "cus"}, eligibility={"cus": closed(Period("sub", at(1), at(11), True))})
    recorded = [RecordedEvent(1, "cus", 10, 10, at(10, 23), State.VERIFIED)]
    held = plan(SUM, payers, recorded)
    assert isinstance(held, Hold)
    assert (held.value, held.target, held.reason) == (-3, 7, HoldReason.PERIOD_CLOSED)


def test_the_terms_are_those_of_the_customer_that_was_stated_first() -> None:
    payers = Payers({"org": "cus_new"}, eligibility={"cus_new": subscription("paused")})
    recorded = [RecordedEvent(1, "cus_old", 10, 10, at(10, 23), State.VERIFIED)]
    corrected = plan(SUM, payers, recorded)
    assert isinstance(corrected, MeterEvent)
    assert (corrected.customer, corrected.value) == ("cus_old", -3)


def test_an_undecided_organization_is_held_until_somebody_decides() -> None:
    planned = plan_day(
        DAY, [SUM, LAST], {"org": Usage(2, 7)}, Payers({}, frozenset({"org"})), {}, NOW
    )
    assert {hold.reason for hold in planned.holds} == {HoldReason.CUSTOMER_UNDECIDED}
    assert {hold.value for hold in planned.holds} == {2, 7}


@pytest.mark.parametrize("code", ["archived_meter", "no_meter"])
def test_what_an_absent_meter_refused_is_sent_again_once_after_it_came_back(code: str) -> None:
    refused = RecordedEvent(
        1, "cus", 7, 7, at(10, 23), State.REJECTED, code, last_attempt_at=at(11)
    )
    payers = Payers({"org": "cus"})
    assert plan(SUM, payers, [refused]) is None
    back = Meter(SUM.event_name, SUM.formula, SUM.measure, meter_id="mtr_r", changed_at=at(11) + 5)
    again = plan(back, payers, [refused])
    assert isinstance(again, MeterEvent)
    assert (again.revision, again.value) == (2, 7)
    later = RecordedEvent(
        2, "cus", 7, 7, at(10, 23) + 1, State.REJECTED, code, last_attempt_at=at(11) + 9
    )
    assert plan(back, payers, [refused, later]) is None


def test_what_stripe_refused_for_its_content_is_not_sent_again_by_itself() -> None:
    refused = RecordedEvent(
        1, "cus", 7, 7, at(10, 23), State.REJECTED, "meter_event_invalid_value", at(11)
    )
    back = Meter(SUM.event_name, SUM.formula, SUM.measure, meter_id="mtr_r", changed_at=at(12))
    assert plan(back, Payers({"org": "cus"}), [refused]) is None


def test_boundaries_are_those_of_the_subscriptions_that_bill_the_meter() -> None:
    eligibility = Eligibility(
        (
            Subscription("mine", Policy.REPORT, at(1), meters=frozenset({"mtr_r"})),
            Subscription("other", Policy.REPORT, at(1), at(10, 9), meters=frozenset({"x"})),
        ),
        (Period("mine", at(1), at(10, 14)), Period("other", at(1), at(10, 15))),
    )
    assert eligibility.boundaries("mtr_r", at(10), at(11)) == [at(10, 14)]
    assert eligibility.boundaries("x", at(10), at(11)) == [at(10, 9), at(10, 15)]
