"""Under which eligibility usage is reported: the policy line by line, and what closes a period."""

from __future__ import annotations

from dataclasses import replace
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
from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.model import State, Usage
from tests.rules.support import (
    DAY,
    LAST,
    MAPPED,
    SUM,
    plan_day,
    plan_event,
    plan_hold,
    plan_one,
    recorded,
)


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
        ("napping", HoldReason.SUBSCRIPTION_UNKNOWN),
        ("", HoldReason.SUBSCRIPTION_UNKNOWN),
    ],
)
def test_each_status_means_what_the_table_says(status: str, reason: HoldReason | None) -> None:
    assert subscription(status).hold_reason("mtr_r", at(10)) == reason


def test_a_customer_without_a_known_subscription_is_reported() -> None:
    assert Eligibility().hold_reason("mtr_r", at(10)) is None
    assert MAPPED.eligibility_of("cus").hold_reason("mtr_r", at(10)) is None


def test_usage_before_a_cancellation_counts_and_after_it_does_not() -> None:
    canceled = subscription("canceled", end=10)
    assert canceled.hold_reason("mtr_r", at(10) - 1) is None
    assert canceled.hold_reason("mtr_r", at(10)) == HoldReason.SUBSCRIPTION_ENDED


def test_a_scheduled_end_counts_even_if_its_event_is_late() -> None:
    ending = subscription("active", end=10)
    assert ending.hold_reason("mtr_r", at(10) - 1) is None
    assert ending.hold_reason("mtr_r", at(10)) == HoldReason.SUBSCRIPTION_ENDED


def test_a_new_subscription_covers_usage_from_its_start_on_but_not_the_gap() -> None:
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


def test_a_subscription_to_other_meters_does_not_matter() -> None:
    paused = subscription("paused", meters=frozenset({"mtr_other"}))
    assert paused.hold_reason("mtr_r", at(10)) is None
    assert paused.hold_reason("mtr_other", at(10)) == HoldReason.SUBSCRIPTION_INACTIVE
    licensed_only = subscription("paused", meters=frozenset())
    assert licensed_only.hold_reason("mtr_r", at(10)) is None


def test_usage_of_a_deleted_customer_is_on_hold_whatever_its_subscription() -> None:
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


def test_an_outdated_end_of_the_same_subscription_does_not_keep_a_period_open() -> None:
    eligibility = closed(Period("sub", at(1), at(10), final=True), Period("sub", at(1), at(20)))
    assert eligibility.hold_reason("mtr_r", at(5)) == HoldReason.PERIOD_CLOSED


def paid_under(eligibility: Eligibility) -> Payers:
    return Payers({"org": "cus"}, eligibility={"cus": eligibility})


def test_usage_that_is_not_eligible_is_on_hold_and_a_zero_waits_silently() -> None:
    payers = paid_under(subscription("paused"))
    hold = plan_hold(SUM, 7, payers=payers)
    assert (hold.value, hold.reason) == (7, HoldReason.SUBSCRIPTION_INACTIVE)
    # Without the hold the period would end with the value of an earlier day.
    zero = plan_hold(LAST, 0, payers=payers)
    assert (zero.value, zero.is_silent, hold.is_silent) == (0, True, False)
    assert plan_one(SUM, 0, payers=payers) is None


def test_the_correction_of_a_closed_period_is_on_hold_with_its_amount() -> None:
    payers = paid_under(closed(Period("sub", at(1), at(11), True)))
    hold = plan_hold(SUM, 7, recorded(10, state=State.VERIFIED), payers=payers)
    assert (hold.value, hold.target, hold.reason) == (-3, 7, HoldReason.PERIOD_CLOSED)


def test_eligibility_is_that_of_the_customer_that_was_reported_first() -> None:
    payers = Payers({"org": "cus_new"}, eligibility={"cus_new": subscription("paused")})
    first = recorded(10, state=State.VERIFIED)  # for cus
    event = plan_event(SUM, 7, first, customer="cus_new", payers=payers)
    assert (event.customer, event.value) == ("cus", -3)


def test_an_undecided_organization_is_on_hold_until_somebody_decides() -> None:
    planned = plan_day([SUM, LAST], {"org": Usage(2, 7)}, Payers({}, frozenset({"org"})))
    assert {hold.reason for hold in planned.holds} == {HoldReason.CUSTOMER_UNDECIDED}
    assert {hold.value for hold in planned.holds} == {2, 7}


@pytest.mark.parametrize("code", ["archived_meter", "no_meter"])
def test_an_event_that_an_inactive_meter_refused_is_sent_again_once_it_is_back(code: str) -> None:
    refused = recorded(7, state=State.REJECTED, error_code=code, last_attempt_at=at(11))
    assert plan_one(SUM, 7, refused) is None
    back = replace(SUM, changed_at=at(11) + 5)
    again = plan_event(back, 7, refused)
    assert (again.revision, again.value) == (2, 7)
    later = replace(refused[0], revision=2, timestamp=again.timestamp, last_attempt_at=at(11) + 9)
    assert plan_one(back, 7, [*refused, later]) is None


def test_an_event_that_was_refused_for_its_content_is_not_sent_again() -> None:
    code = "meter_event_invalid_value"
    refused = recorded(7, state=State.REJECTED, error_code=code, last_attempt_at=at(11))
    assert plan_one(replace(SUM, changed_at=at(12)), 7, refused) is None


def test_period_boundaries_are_those_of_the_subscriptions_that_bill_the_meter() -> None:
    eligibility = Eligibility(
        (
            Subscription("mine", Policy.REPORT, at(1), meters=frozenset({"mtr_r"})),
            Subscription("other", Policy.REPORT, at(1), at(10, 9), meters=frozenset({"x"})),
        ),
        (Period("mine", at(1), at(10, 14)), Period("other", at(1), at(10, 15))),
    )
    assert eligibility.boundaries("mtr_r") == {at(1), at(10, 14)}
    assert eligibility.boundaries("x") == {at(1), at(10, 9), at(10, 15)}
    payers, days = paid_under(eligibility), [DAY, date(2026, 3, 1)]
    assert payers.boundaries(["mtr_r"], days) == {DAY: {"cus": {at(10, 14)}}}
    assert payers.boundaries(["x"], days) == {DAY: {"cus": {at(10, 9), at(10, 15)}}}
