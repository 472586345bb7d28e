"""Usage of a closed period: a person carries it forward or writes it off; nothing is re-dated."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.adjustments import Adjustment, decided_adjustments
from billing_pipeline.operations import adjust as adjustments
from billing_pipeline.operations.alerts import alerts
from billing_pipeline.operations.bill import report_days
from billing_pipeline.operations.day_inputs import unfinished_days
from tests.closed_period import CLOSED, LATEST, invoiced
from tests.support import World

SUM, LAST = "temperature_readings", "active_sensors"


def finish(world: World) -> None:
    """Run what the sensor would run, and verify it."""
    for _ in range(3):
        days = unfinished_days(world.context())
        if not days:
            return
        world.bill(days)
    raise AssertionError("the sensor would run for ever")


def late(world: World, readings: int) -> adjustments.OpenAdjustment:
    """The closed day turns out to have had so many readings."""
    world.write_readings(CLOSED, {"acme": {"s": readings}})
    world.bill([CLOSED])
    [waiting] = [
        w for w in adjustments.open_adjustments(world.context()) if w.cell.event_name == SUM
    ]
    return waiting


def in_stripe(world: World) -> dict[str, int]:
    return {
        day.isoformat(): value
        for (_, meter, day), value in world.billed().items()
        if meter == SUM and day >= CLOSED
    }


def test_a_late_file_of_a_closed_period_is_approved_and_stated_in_the_current_one(
    closed: World,
) -> None:
    waiting = late(closed, 17)
    assert (waiting.amount, waiting.held.reason) == (7, "period_closed")
    assert "closed_usage" in {alert.kind for alert in alerts(closed.context())}
    before = in_stripe(closed)
    decision = adjustments.approve(closed.context("analyst"), waiting.id, "the gateway was offline")
    [entry] = decision.entries
    assert (entry.cell.usage_day, entry.amount) == (LATEST, 7)
    assert unfinished_days(closed.context()) == [LATEST]
    finish(closed)
    assert in_stripe(closed) == before | {LATEST.isoformat(): 17}
    assert invoiced(closed) == 30
    context = closed.context()
    assert adjustments.open_adjustments(context) == []
    assert context.ledger.read(queries.holds_of, [CLOSED, LATEST]) == []
    story = adjustments.story(context, waiting.id)
    assert (story["decision"], story["reason"], story["run"]) == (
        "approved", "the gateway was offline", "analyst",
    )  # fmt: skip
    correction = story["events"][-1]
    assert (correction["value"], correction["target"]) == (7, 17)
    assert "approved" in {
        row["to_state"] for row in context.ledger.read(queries.story, waiting.cell).history
    }
    # Running everything again changes nothing.
    days = [CLOSED + timedelta(days=n) for n in range(-2, 4)]
    assert closed.bill(days).sent == 0


def test_too_much_in_a_closed_period_is_taken_back_from_several_days(closed: World) -> None:
    waiting = late(closed, 0)
    assert waiting.amount == -10
    closed.write_readings(LATEST, {"acme": {"s": 4}})
    closed.bill([LATEST])
    decision = adjustments.approve(closed.context(), waiting.id, "the meter was in the workshop")
    assert [(e.cell.usage_day, e.amount) for e in decision.entries] == [
        (LATEST, -4), (LATEST - timedelta(days=1), -6),
    ]  # fmt: skip
    finish(closed)
    stripe = in_stripe(closed)
    assert LATEST.isoformat() not in stripe
    assert stripe[(LATEST - timedelta(days=1)).isoformat()] == 4
    # What a day has afterwards is less than was taken back from it: seen, and not below zero.
    closed.write_readings(LATEST, {"acme": {"s": 1}})
    closed.bill([LATEST])
    held = closed.context().ledger.read(queries.holds_of, [LATEST])
    assert [(h.reason, h.value) for h in held if h.cell.event_name == SUM] == [("below_zero", -3)]


def test_more_is_taken_back_than_there_is(closed: World) -> None:
    waiting = late(closed, 0)
    for n in range(3):
        closed.write_readings(LATEST - timedelta(days=n), {"acme": {"s": 1}})
    closed.bill([LATEST - timedelta(days=n) for n in range(3)])
    with pytest.raises(ConfigurationError, match="only 3"):
        adjustments.approve(closed.context(), waiting.id, "why")
    assert waiting.id in [each.id for each in adjustments.open_adjustments(closed.context())]


def test_a_dismissed_amount_stays_on_record_and_later_readings_ask_anew(closed: World) -> None:
    waiting = late(closed, 17)
    adjustments.dismiss(closed.context(), waiting.id, "below what we bill for")
    finish(closed)
    assert adjustments.open_adjustments(closed.context()) == []
    assert closed.bill([CLOSED]).sent == 0
    assert closed.context().ledger.read(queries.holds_of, [CLOSED]) == []
    [decided] = adjustments.document(closed.context())["decided"]
    assert (decided["decision"], decided["amount"], decided["reported_in"]) == ("dismissed", 7, [])
    again = late(closed, 20)
    assert (again.amount, again.id == waiting.id) == (3, False)


def test_a_decision_is_about_what_was_seen(closed: World) -> None:
    seen = late(closed, 17)
    late(closed, 18)
    with pytest.raises(ConfigurationError, match="later readings"):
        adjustments.approve(closed.context(), seen.id, "why")
    now_waiting = late(closed, 18)
    with pytest.raises(ConfigurationError, match="needs a reason"):
        adjustments.dismiss(closed.context(), now_waiting.id, " ")
    adjustments.approve(closed.context(), now_waiting.id, "why")
    with pytest.raises(ConfigurationError, match="may have been decided"):
        adjustments.approve(closed.context(), now_waiting.id, "why")


def test_a_last_value_is_only_written_off(closed: World) -> None:
    closed.write_readings(CLOSED, {"acme": {"s": 10, "t": 0, "u": 0}})
    closed.write_readings(CLOSED, {"acme": {"t": 1}}, "late.jsonl")
    closed.bill([CLOSED])
    by_meter = {
        each.cell.event_name: each for each in adjustments.open_adjustments(closed.context())
    }
    assert {name: each.amount for name, each in by_meter.items()} == {SUM: 1, LAST: 1}
    with pytest.raises(ConfigurationError, match="dismiss it"):
        adjustments.approve(closed.context(), by_meter[LAST].id, "why")
    adjustments.dismiss(closed.context(), by_meter[LAST].id, "the period is billed")
    closed.bill([CLOSED])
    assert [each.cell.event_name for each in adjustments.open_adjustments(closed.context())] == [
        SUM
    ]


def test_two_people_decide_at_once_and_one_of_them_is_told(closed: World) -> None:
    waiting = late(closed, 17)
    first, second = closed.context("one"), closed.context("two")
    decided: list[Adjustment] = [adjustments.dismiss(first, waiting.id, "no")]
    with pytest.raises(ConfigurationError):
        adjustments._decide(second, waiting, "yes", adjustments._room_for(second, waiting))
    assert closed.context().ledger.read(decided_adjustments) == decided


def test_usage_that_is_too_old_is_carried_too(closed: World) -> None:
    closed.advance(days=36)
    closed.apply()
    waiting = late(closed, 12)
    # The invoice of that month is final as well; the current period began after it.
    assert waiting.held.reason in ("period_closed", "too_old")
    report_days(closed.context(), [CLOSED])
    decision = adjustments.approve(closed.context(), waiting.id, "found on a disk")
    assert [entry.cell.usage_day for entry in decision.entries] == [closed.clock().date()]
