"""Usage of a closed period: a person adjusts it or writes it off; nothing is re-dated."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.adjustments import decided_adjustments
from billing_pipeline.operations import adjust
from billing_pipeline.operations.adjust import (
    OpenAdjustment,
    approve,
    dismiss,
    list_adjustments,
    open_adjustments,
    show_adjustment,
)
from billing_pipeline.operations.alerts import alerts
from billing_pipeline.operations.bill import report_days
from billing_pipeline.operations.day_inputs import unfinished_days
from tests.closed_period import CLOSED, LATEST, invoiced
from tests.support import LAST, SUM, World


def finish(world: World) -> None:
    """Run what the sensor would run, and verify it."""
    for _ in range(3):
        days = unfinished_days(world.context())
        if not days:
            return
        world.bill(days)
    raise AssertionError("the sensor would run for ever")


def waiting(world: World, meter: str = SUM) -> list[OpenAdjustment]:
    return [each for each in open_adjustments(world.context()) if each.cell.event_name == meter]


def late(world: World, readings: int) -> OpenAdjustment:
    """The closed day turns out to have had so many readings."""
    world.write_readings(CLOSED, {"acme": {"s": readings}})
    world.bill([CLOSED])
    [found] = waiting(world)
    return found


def in_stripe(world: World) -> dict[date, int]:
    """What Stripe bills on the sum meter, from the closed day on."""
    return {
        day: value
        for (_, meter, day), value in world.billed().items()
        if meter == SUM and day >= CLOSED
    }


def test_late_readings_of_a_closed_period_are_reported_in_the_current_one(closed: World) -> None:
    found = late(closed, 17)
    assert (found.amount, found.hold.reason) == (7, "period_closed")
    assert "closed_usage" in {alert.kind for alert in alerts(closed.context())}
    before = in_stripe(closed)
    decision = approve(closed.context("analyst"), found.id, "the gateway was offline")
    [entry] = decision.entries
    assert (entry.cell.usage_day, entry.amount) == (LATEST, 7)
    assert unfinished_days(closed.context()) == [CLOSED, LATEST]
    finish(closed)
    assert in_stripe(closed) == before | {LATEST: 17}
    assert invoiced(closed) == 30
    context = closed.context()
    assert open_adjustments(context) == []
    assert closed.holds(CLOSED, LATEST) == []
    shown = show_adjustment(context, found.id)
    assert (shown["decision"], shown["run"]) == ("approved", "analyst")
    assert shown["reason"] == "the gateway was offline"
    correction = shown["events"][-1]
    assert (correction["value"], correction["target"]) == (7, 17)
    history = context.ledger.read(queries.story, found.cell).history
    assert "approved" in {row["to_state"] for row in history}
    # Running everything again changes nothing.
    days = [CLOSED + timedelta(days=n) for n in range(-2, 4)]
    assert closed.bill(days).sent == 0


def test_too_much_in_a_closed_period_is_taken_back_from_several_days(closed: World) -> None:
    found = late(closed, 0)
    assert found.amount == -10
    closed.write_readings(LATEST, {"acme": {"s": 4}})
    closed.bill([LATEST])
    decision = approve(closed.context(), found.id, "the meter was in the workshop")
    before = LATEST - timedelta(days=1)
    assert [(e.cell.usage_day, e.amount) for e in decision.entries] == [(LATEST, -4), (before, -6)]
    finish(closed)
    stripe = in_stripe(closed)
    assert LATEST not in stripe
    assert stripe[before] == 4
    # Later the day has less than was taken back from it: a hold, and nothing below zero.
    closed.write_readings(LATEST, {"acme": {"s": 1}})
    closed.bill([LATEST])
    holds = [(h.reason, h.value) for h in closed.holds(LATEST) if h.cell.event_name == SUM]
    assert holds == [("below_zero", -3)]


def test_an_approval_that_takes_back_too_much_is_refused(closed: World) -> None:
    found = late(closed, 0)
    days = [LATEST - timedelta(days=n) for n in range(3)]
    for day in days:
        closed.write_readings(day, {"acme": {"s": 1}})
    closed.bill(days)
    with pytest.raises(ConfigurationError, match="only 3"):
        approve(closed.context(), found.id, "why")
    assert waiting(closed) == [found]


def test_a_dismissed_amount_stays_on_record_and_later_readings_ask_again(closed: World) -> None:
    found = late(closed, 17)
    dismiss(closed.context(), found.id, "below what we bill for")
    finish(closed)
    assert open_adjustments(closed.context()) == []
    assert closed.bill([CLOSED]).sent == 0
    assert closed.holds(CLOSED) == []
    [decided] = list_adjustments(closed.context())["decided"]
    assert (decided["decision"], decided["amount"], decided["reported_in"]) == ("dismissed", 7, [])
    again = late(closed, 20)
    assert again.amount == 3
    assert again.id != found.id


def test_a_decision_is_refused_once_its_amount_has_changed(closed: World) -> None:
    seen = late(closed, 17)
    late(closed, 18)
    with pytest.raises(ConfigurationError, match="later readings"):
        approve(closed.context(), seen.id, "why")
    now = late(closed, 18)
    with pytest.raises(ConfigurationError, match="needs a reason"):
        dismiss(closed.context(), now.id, " ")
    approve(closed.context(), now.id, "why")
    with pytest.raises(ConfigurationError, match="may have been decided"):
        approve(closed.context(), now.id, "why")


def test_a_value_of_a_last_meter_can_only_be_written_off(closed: World) -> None:
    closed.write_readings(CLOSED, {"acme": {"s": 10, "t": 0, "u": 0}})
    closed.write_readings(CLOSED, {"acme": {"t": 1}}, "late.jsonl")
    closed.bill([CLOSED])
    [on_sum], [on_last] = waiting(closed), waiting(closed, LAST)
    assert (on_sum.amount, on_last.amount) == (1, 1)
    with pytest.raises(ConfigurationError, match="dismiss it"):
        approve(closed.context(), on_last.id, "why")
    dismiss(closed.context(), on_last.id, "the period is billed")
    closed.bill([CLOSED])
    assert [each.cell.event_name for each in open_adjustments(closed.context())] == [SUM]


def test_of_two_decisions_at_once_the_second_is_refused(closed: World) -> None:
    found = late(closed, 17)
    first, second = closed.context("one"), closed.context("two")
    decision = dismiss(first, found.id, "no")
    with pytest.raises(ConfigurationError, match="has changed at this moment"):
        adjust._decide(second, found, "yes", adjust._allocate(second, found))
    assert closed.context().ledger.read(decided_adjustments) == [decision]


def test_usage_that_is_too_old_can_be_adjusted_too(closed: World) -> None:
    closed.advance(days=36)
    closed.apply()
    found = late(closed, 12)
    # The invoice of that month is final as well; the current period began after it.
    assert found.hold.reason in ("period_closed", "too_old")
    report_days(closed.context(), [CLOSED])
    decision = approve(closed.context(), found.id, "found on a disk")
    assert [entry.cell.usage_day for entry in decision.entries] == [closed.clock().date()]
