"""Carry-forward as double entries: nothing is made, nothing is lost, nothing falls below zero."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.rules.adjustments import (
    Entry,
    allocate,
)
from billing_pipeline.rules.eligibility import Payers
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
from billing_pipeline.rules.segments import Segment
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.stripe_facts import OLDEST_REPORTED

DAY = date(2026, 3, 10)
NOW = datetime(2026, 3, 12, tzinfo=UTC)
LONG_AFTER = NOW + OLDEST_REPORTED + timedelta(days=2)
CELL = Cell(DAY, "org", "readings")
SUM = Meter("readings", Formula.SUM, Measure.READING_VOLUME)
LAST = Meter("sensors", Formula.LAST, Measure.ACTIVE_SENSORS)


def reported(value: int) -> list[RecordedEvent]:
    return (
        [RecordedEvent(1, "cus", value, value, day_end(DAY) - 3600, State.VERIFIED)]
        if value
        else []
    )


def at_noon(amount: int) -> list[Entry]:
    return [Entry(CELL, day_start(DAY) + 43_200, amount)]


def test_an_entry_is_stated_as_a_correction_of_just_its_amount() -> None:
    event = plan_cell(SUM, CELL, 10, "cus", reported(10), NOW, adjustments=at_noon(5))
    assert isinstance(event, MeterEvent)
    assert (event.value, event.target) == (5, 15)
    back = plan_cell(SUM, CELL, 10, "cus", reported(10), NOW, adjustments=at_noon(-4))
    assert isinstance(back, MeterEvent)
    assert (back.value, back.target) == (-4, 6)


def test_an_entry_in_another_part_of_time_adds_nothing() -> None:
    elsewhere = [Entry(CELL, day_end(DAY), 5)]
    assert plan_cell(SUM, CELL, 10, "cus", reported(10), NOW, adjustments=elsewhere) is None


def test_no_day_falls_below_zero() -> None:
    held = plan_cell(SUM, CELL, 3, "cus", reported(10), NOW, adjustments=at_noon(-5))
    assert isinstance(held, Hold)
    assert (held.reason, held.value, held.difference) == (HoldReason.BELOW_ZERO, -12, -12)


def test_a_cell_that_only_an_adjustment_speaks_of_is_planned() -> None:
    plan = plan_day(DAY, [SUM], {}, Payers({"org": "cus"}), {}, NOW, adjustments={CELL: at_noon(7)})
    assert [(e.cell, e.value) for e in plan.events] == [(CELL, 7)]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_what_was_decided_is_held_no_more_and_what_came_later_is(
    before: int, then: int, later: int
) -> None:
    held = plan_cell(SUM, CELL, then, "cus", reported(before), LONG_AFTER)
    decided = held.difference if isinstance(held, Hold) else 0
    assert decided == then - before
    adjustments = at_noon(-decided)
    assert (
        plan_cell(SUM, CELL, then, "cus", reported(before), LONG_AFTER, adjustments=adjustments)
        is None
    )
    again = plan_cell(
        SUM, CELL, later, "cus", reported(before), LONG_AFTER, adjustments=adjustments
    )
    assert (again.difference if isinstance(again, Hold) else 0) == later - then


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_dismissed_last_value_stays_dismissed_and_is_never_stated(before: int, then: int) -> None:
    recorded = reported(before)
    held = plan_cell(LAST, CELL, then, "cus", recorded, LONG_AFTER)
    if isinstance(held, Hold):
        adjustments = at_noon(-held.difference)
        assert (
            plan_cell(LAST, CELL, then, "cus", recorded, LONG_AFTER, adjustments=adjustments)
            is None
        )
        # Where it may be reported after all, it is reported as it is.
        event = plan_cell(LAST, CELL, then, "cus", recorded, NOW, adjustments=adjustments)
        assert isinstance(event, MeterEvent)
        assert event.value == then
    else:
        assert before == then


@given(
    st.integers(-60, 60).filter(bool),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_an_amount_is_carried_whole_or_not_at_all(amount: int, units: list[int]) -> None:
    context = [
        (Cell(DAY + timedelta(days=n), "org", "readings"), day_start(DAY) + n * 86_400, unit)
        for n, unit in enumerate(units)
    ]
    entries = allocate(amount, context)
    if entries is None:
        assert not units or -amount > sum(units)
        return
    assert sum(entry.amount for entry in entries) == amount
    by_cell = {cell: unit for cell, _, unit in context}
    assert all(by_cell[entry.cell] + entry.amount >= 0 for entry in entries)
    assert len({entry.cell for entry in entries}) == len(entries)


def test_a_part_that_a_daily_window_leaves_out_can_be_decided() -> None:
    daily = Meter("readings", Formula.SUM, Measure.READING_VOLUME, event_time_window="day")
    noon = day_start(DAY) + 43_200
    segments = [
        Segment(day_start(DAY), noon, Usage(3, 3)),
        Segment(noon, day_end(DAY), Usage(4, 4)),
    ]
    payers, usage = Payers({"org": "cus"}), {"org": Usage(7, 7)}

    def holds(adjustments: dict[Cell, list[Entry]]) -> list[tuple[int, int]]:
        plan = plan_day(
            DAY, [daily], usage, payers, {}, NOW, segments_of={"org": segments}, adjustments=adjustments
        )  # fmt: skip
        return [(hold.start, hold.difference) for hold in plan.holds]

    assert holds({}) == [(day_start(DAY), 3)]
    assert holds({CELL: [Entry(CELL, day_start(DAY), -3)]}) == []
