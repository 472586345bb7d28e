"""Adjustments as double entries: nothing is made up, nothing is lost, nothing falls below zero."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.rules.adjustments import Entry, allocate
from billing_pipeline.rules.holds import Hold, HoldReason
from billing_pipeline.rules.model import Cell, RecordedEvent, State, Usage
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from tests.rules.support import (
    DAY,
    END,
    LAST,
    NOON,
    NOW,
    START,
    SUM,
    SUM_BY_DAY,
    cell,
    halves,
    plan_day,
    plan_event,
    plan_hold,
    plan_one,
    recorded,
)

LONG_AFTER = NOW + OLDEST_REPORTED + timedelta(days=2)


def reported(value: int) -> list[RecordedEvent]:
    return recorded(value, state=State.VERIFIED) if value else []


def at_noon(amount: int) -> list[Entry]:
    return [Entry(cell(SUM), NOON, amount)]


def test_an_entry_is_reported_as_a_correction_of_just_its_amount() -> None:
    event = plan_event(SUM, 10, reported(10), adjustments=at_noon(5))
    assert (event.value, event.target) == (5, 15)
    back = plan_event(SUM, 10, reported(10), adjustments=at_noon(-4))
    assert (back.value, back.target) == (-4, 6)


def test_an_entry_at_another_time_adds_nothing() -> None:
    elsewhere = [Entry(cell(SUM), END, 5)]
    assert plan_one(SUM, 10, reported(10), adjustments=elsewhere) is None


def test_no_day_falls_below_zero() -> None:
    hold = plan_hold(SUM, 3, reported(10), adjustments=at_noon(-5))
    assert (hold.reason, hold.value, hold.difference) == (HoldReason.BELOW_ZERO, -12, -12)


def test_a_cell_that_only_has_an_adjustment_is_planned() -> None:
    planned = plan_day([SUM], {}, adjustments={cell(SUM): at_noon(7)})
    assert [(e.cell, e.value) for e in planned.events] == [(cell(SUM), 7)]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_a_decided_amount_is_no_longer_on_hold_and_a_later_one_is(
    before: int, then: int, later: int
) -> None:
    def on_hold(target: int, entries: list[Entry]) -> int:
        outcome = plan_one(SUM, target, reported(before), now=LONG_AFTER, adjustments=entries)
        assert outcome is None or isinstance(outcome, Hold)
        return outcome.difference if outcome else 0

    assert on_hold(then, []) == then - before
    decided = at_noon(before - then)
    assert plan_one(SUM, then, reported(before), now=LONG_AFTER, adjustments=decided) is None
    assert on_hold(later, decided) == later - then


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_dismissed_last_value_stays_dismissed_and_is_never_reported(
    before: int, then: int
) -> None:
    hold = plan_one(LAST, then, reported(before), now=LONG_AFTER)
    if not isinstance(hold, Hold):
        assert before == then
        return
    adjustments = at_noon(-hold.difference)
    later = plan_one(LAST, then, reported(before), now=LONG_AFTER, adjustments=adjustments)
    assert later is None
    # If it may be reported after all, it is reported as it is.
    assert plan_event(LAST, then, reported(before), adjustments=adjustments).value == then


@given(st.integers(-60, 60).filter(bool), st.lists(st.integers(0, 20), max_size=6))
def test_an_amount_is_allocated_whole_or_not_at_all(amount: int, units: list[int]) -> None:
    places = [
        (Cell(DAY + timedelta(days=n), "org", SUM.event_name), START + n * 86_400, unit)
        for n, unit in enumerate(units)
    ]
    entries = allocate(amount, places)
    if entries is None:
        assert not units or -amount > sum(units)
        return
    assert sum(entry.amount for entry in entries) == amount
    by_cell = {cell: unit for cell, _, unit in places}
    assert all(by_cell[entry.cell] + entry.amount >= 0 for entry in entries)
    assert len({entry.cell for entry in entries}) == len(entries)


def test_a_segment_that_a_daily_window_does_not_report_can_be_decided() -> None:
    def holds(adjustments: dict[Cell, list[Entry]]) -> list[tuple[int, int]]:
        segments = {"org": halves(3, 4)}
        planned = plan_day(
            [SUM_BY_DAY], {"org": Usage(7, 7)}, segments=segments, adjustments=adjustments
        )
        return [(hold.start, hold.difference) for hold in planned.holds]

    assert holds({}) == [(START, 3)]
    assert holds({cell(SUM_BY_DAY): [Entry(cell(SUM_BY_DAY), START, -3)]}) == []
