"""An undone run: Stripe has again what it had before it, and everything stays on record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.decisions import run_record
from billing_pipeline.operations.bill import count_usage, report_days
from billing_pipeline.operations.context import Actor
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.undo import Undone, undo_run
from billing_pipeline.rules.model import Cell
from billing_pipeline.rules.planning import PlanOptions
from billing_pipeline.rules.timestamps import day_start
from tests.support import LAST, SUM, World, yesterday

DAYS = [yesterday() - timedelta(days=n) for n in (2, 1, 0)]
BY = Actor("ann", "the file was of another plant")


def run(world: World, name: str, days: Sequence[date] = DAYS) -> None:
    """A run under this name, over all days."""
    context = world.context(name)
    for day in days:
        count_usage(context, day)
    report_days(context, days, by=Actor("bob", "backfill"), options=PlanOptions(report_undone=True))
    world.verify(days)


def undo(world: World, name: str) -> Undone:
    return undo_run(world.context(f"undo-{name}"), name, BY)


@pytest.fixture
def backfilled(world: World) -> World:
    """Three days billed, then billed again from wrong readings."""
    world.make_meters()
    world.make_customers(["a", "b"])
    for day in DAYS:
        world.write_readings(day, {"a": {"s": 3, "t": 2}})
    run(world, "first")
    for day in DAYS[:2]:
        world.write_readings(day, {"a": {"s": 9}, "b": {"u": 4}})
    run(world, "second")
    return world


def test_the_values_before_a_run_are_reported_again_as_new_revisions(backfilled: World) -> None:
    right = {day: {"a": {"s": 3, "t": 2}} for day in DAYS}
    assert backfilled.billed() != backfilled.due(right)
    events = len(backfilled.sandbox.account.events)
    undone = undo(backfilled, "second")
    assert undone.unchanged == []
    assert backfilled.billed() == backfilled.due(right)
    assert undone.reporting.sent == len(backfilled.sandbox.account.events) - events == 8
    assert backfilled.states(*DAYS) == {"verified": len(backfilled.sandbox.account.events)}
    story = backfilled.context().ledger.read(queries.story, Cell(DAYS[0], "a", SUM))
    last = story.events[-1]
    assert last["who"] == "ann"
    assert last["reason"] == "undo of second: the file was of another plant"
    assert [e["reason"] for e in story.events[:2]] == ["backfill", "backfill"]


def test_a_run_stays_undone_until_somebody_runs_its_days_again(backfilled: World) -> None:
    undo(backfilled, "second")
    right = backfilled.billed()
    # A run that nobody asked for leaves it undone and shows the holds; so does a new customer.
    for new in (0, 1):
        days = unfinished_days(backfilled.context())
        assert days
        assert backfilled.bill(days).sent == new * len(DAYS)  # the new one's zeros
        assert backfilled.billed() == right
        holds = backfilled.holds(*DAYS)
        assert {hold.reason for hold in holds} == {"undone"}
        assert {hold.cell.usage_day for hold in holds} == set(DAYS[:2])
        assert unfinished_days(backfilled.context()) == []
        backfilled.make_customers(["zoe"])
    assert undo(backfilled, "second").reporting.sent == 0
    assert {k: v for k, v in backfilled.billed().items() if k in right} == right
    run(backfilled, "third")
    assert backfilled.holds(*DAYS) == []
    wrong = {day: {"a": {"s": 9}, "b": {"u": 4}} for day in DAYS[:2]}
    assert backfilled.billed() == backfilled.due(wrong | {DAYS[2]: {"a": {"s": 3, "t": 2}}})


def test_an_undoing_can_be_undone(backfilled: World) -> None:
    before = backfilled.billed()
    undo(backfilled, "second")
    assert backfilled.billed() != before
    undo(backfilled, "undo-second")
    assert backfilled.billed() == before


def test_a_cell_that_was_reported_since_stays_unchanged_and_is_named(backfilled: World) -> None:
    before = backfilled.billed()
    backfilled.write_readings(DAYS[0], {"a": {"s": 9}, "b": {"u": 5}})
    run(backfilled, "third")
    undone = undo(backfilled, "second")
    assert {(row["organization_id"], row["meter"]) for row in undone.unchanged} == {("b", SUM)}
    customer = backfilled.customers["b"]
    assert before[customer, SUM, DAYS[0]] == 4
    assert backfilled.billed()[customer, SUM, DAYS[0]] == 5


def test_a_first_report_is_taken_back_and_a_last_meter_shows_the_day_before(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    world.write_readings(DAYS[0], {"a": {"s": 3, "t": 2}})
    world.bill(DAYS[:1])
    world.write_readings(DAYS[1], {"a": {"s": 1}})
    world.write_readings(DAYS[2], {"a": {"s": 1, "t": 1, "u": 1}})
    run(world, "backfill")
    undo(world, "backfill")
    customer = world.customers["a"]
    assert {key: value for key, value in world.billed().items() if key[2] > DAYS[0]} == {
        (customer, LAST, DAYS[1]): 2,
        (customer, LAST, DAYS[2]): 2,
    }


def test_each_segment_of_a_day_is_undone_by_itself(world: World) -> None:
    """The period ends ten minutes before the day does; its invoice is a draft for an hour."""
    world.make_meters()
    world.make_customers(["a"])
    day = world.clock().date()
    day_end = day_start(day) + 86_400
    boundary = day_end - 600
    subscription = world.make_subscription(
        world.customers["a"], backdate_start_date=str(boundary - 86_400 * 3)
    )
    world.end_period(subscription, boundary)
    world.advance(seconds=day_end + 1200 - world.sandbox.clock())
    world.receive()

    def segments() -> tuple[int, int]:
        """Readings that Stripe has before and after the boundary."""
        events = [e for e in world.sandbox.account.events if e.event_name == SUM]
        early = sum(e.value for e in events if e.timestamp < boundary)
        return early, sum(e.value for e in events) - early

    world.write_readings(day, {"a": {"s": 1440}})
    run(world, "first", [day])
    assert segments() == (1430, 10)
    before = world.billed()
    world.write_readings(day, {"a": {"s": 1440, "t": 1435}})
    run(world, "second", [day])
    assert segments() == (2860, 15)
    undo(world, "second")
    assert segments() == (1430, 10)
    assert world.billed() == before


def test_wrong_use_is_refused_with_what_to_do(backfilled: World) -> None:
    with pytest.raises(ConfigurationError, match="no run 'nobody'"):
        undo_run(backfilled.context(), "nobody", BY)
    with pytest.raises(ConfigurationError, match="needs a reason"):
        undo_run(backfilled.context(), "second", Actor("ann", " "))
    before = backfilled.billed()
    shown = undo_run(backfilled.context("x"), "second", BY, dry_run=True)
    assert len(shown.lines) == 8
    assert backfilled.billed() == before
    assert backfilled.context().ledger.read(run_record, "x") is None
