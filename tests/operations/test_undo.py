"""An undone run: Stripe has again what it held before, and the record keeps everything."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.decisions import run_record
from billing_pipeline.ledger.events import recorded_events
from billing_pipeline.operations.bill import (
    count_usage,
    report_days,
)
from billing_pipeline.operations.context import Actor
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.undo import Undone, undo_run
from billing_pipeline.rules.timestamps import day_start
from tests.support import World, yesterday

SUM, LAST = "temperature_readings", "active_sensors"
DAYS = [yesterday() - timedelta(days=n) for n in (2, 1, 0)]
BY = Actor("ann", "the file was of another plant")


def run(world: World, name: str) -> None:
    """A run under this name, over all days."""
    context = world.context(name)
    for day in DAYS:
        count_usage(context, day)
    report_days(context, DAYS, by=Actor("bob", "backfill"), report_undone=True)
    world.verify(DAYS)


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


def test_what_was_before_is_stated_again_as_new_revisions(backfilled: World) -> None:
    right = {day: {"a": {"s": 3, "t": 2}} for day in DAYS}
    assert backfilled.billed() != backfilled.due(right)
    events = len(backfilled.sandbox.account.events)
    undone = undo(backfilled, "second")
    assert undone.left == []
    assert backfilled.billed() == backfilled.due(right)
    assert undone.reporting.sent == len(backfilled.sandbox.account.events) - events == 8
    context = backfilled.context()
    assert context.ledger.read(queries.counts, DAYS)["verified"] == len(
        backfilled.sandbox.account.events
    )
    story = context.ledger.read(
        queries.story,
        undone_cell := next(iter(context.ledger.read(recorded_events, DAYS)[DAYS[0]])),
    )
    last = story.events[-1]
    assert (last["who"], last["reason"]) == (
        "ann", "undo of second: the file was of another plant",
    )  # fmt: skip
    assert [e["reason"] for e in story.events[:2]] == ["backfill", "backfill"], undone_cell


def test_it_stays_undone_until_somebody_runs_it_again(backfilled: World) -> None:
    undo(backfilled, "second")
    right = backfilled.billed()
    # What runs by itself leaves it undone, and shows what is missing; so does a new customer.
    for new in (0, 1):
        days = unfinished_days(backfilled.context())
        assert days
        assert backfilled.bill(days).sent == new * len(DAYS)  # the new one's zeros
        assert backfilled.billed() == right
        held = backfilled.context().ledger.read(queries.holds_of, DAYS)
        assert {h.reason for h in held} == {"undone"}
        assert {h.cell.usage_day for h in held} == set(DAYS[:2])
        assert unfinished_days(backfilled.context()) == []
        backfilled.make_customers(["zoe"])
    assert undo(backfilled, "second").reporting.sent == 0
    assert {k: v for k, v in backfilled.billed().items() if k in right} == right
    run(backfilled, "third")
    assert backfilled.context().ledger.read(queries.holds_of, DAYS) == []
    wrong = {day: {"a": {"s": 9}, "b": {"u": 4}} for day in DAYS[:2]}
    assert backfilled.billed() == backfilled.due(wrong | {DAYS[2]: {"a": {"s": 3, "t": 2}}})


def test_an_undoing_can_be_undone(backfilled: World) -> None:
    before = backfilled.billed()
    undo(backfilled, "second")
    assert backfilled.billed() != before
    undo(backfilled, "undo-second")
    assert backfilled.billed() == before


def test_what_was_stated_since_is_left_and_named(backfilled: World) -> None:
    before = backfilled.billed()
    backfilled.write_readings(DAYS[0], {"a": {"s": 9}, "b": {"u": 5}})
    run(backfilled, "third")
    undone = undo(backfilled, "second")
    assert {(row["organization_id"], row["meter"]) for row in undone.left} == {("b", SUM)}
    customer = backfilled.customers["b"]
    assert before[customer, SUM, DAYS[0]] == 4
    assert backfilled.billed()[customer, SUM, DAYS[0]] == 5


def test_a_first_statement_is_taken_back_and_last_shows_the_day_before(world: World) -> None:
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


def test_each_part_of_a_split_day_is_undone_in_itself(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    day, noon = yesterday(), day_start(yesterday()) + 43_200
    subscription = world.make_subscription(
        world.customers["a"], backdate_start_date=str(noon - 86_400 * 3)
    )
    for item in subscription["items"]["data"]:
        item["current_period_end"] = noon
    world.sandbox.billing.change_subscription(
        subscription["id"], "customer.subscription.updated", items=subscription["items"]
    )
    world.sandbox.billing.invoices.clear()
    world.receive()
    world.write_readings(day, {"a": {"s": 700}})
    run(world, "first")
    segments = {e.timestamp < noon: e.value for e in world.sandbox.account.events
             if e.event_name == SUM and e.value}  # fmt: skip
    before = world.billed()
    world.write_readings(day, {"a": {"s": 900}})
    run(world, "second")
    undo(world, "second")
    assert world.billed() == before
    for early, value in segments.items():
        inside = [e.value for e in world.sandbox.account.events
                  if e.event_name == SUM and (e.timestamp < noon) == early]  # fmt: skip
        assert sum(inside) == value


def test_wrong_use_says_what_to_do(backfilled: World) -> None:
    with pytest.raises(ConfigurationError, match="no run 'nobody'"):
        undo_run(backfilled.context(), "nobody", BY)
    with pytest.raises(ConfigurationError, match="needs a reason"):
        undo_run(backfilled.context(), "second", Actor("ann", " "))
    before = backfilled.billed()
    shown = undo_run(backfilled.context("x"), "second", BY, dry_run=True)
    assert len(shown.lines) == 8
    assert backfilled.billed() == before
    assert backfilled.context().ledger.read(run_record, "x") is None
