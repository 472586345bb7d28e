"""Ambiguous events: sent again while Stripe knows the identifier, resolved by summaries later."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from billing_pipeline.ledger import queries
from billing_pipeline.ledger.events import (
    Outcome,
    change_state,
    claim,
    deliverable,
    mark_interrupted,
)
from billing_pipeline.operations.bill import report_days
from billing_pipeline.operations.context import Context
from billing_pipeline.rules.model import Cell, State
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.stripe_state import StripeRefusal
from tests.support import LAST, SUM, World, yesterday


@pytest.fixture
def day(world: World) -> date:
    day = yesterday()
    world.make_meters()
    world.make_customers(["a"])
    world.write_readings(day, {"a": {"s": 3, "t": 2}})
    world.snapshot(day)
    return day


def states(context: Context, day: date, meter: str = SUM) -> list[tuple[str, str | None]]:
    events = context.ledger.read(queries.story, Cell(day, "a", meter)).events
    return [(event["state"], event["error_code"]) for event in events]


def due(world: World, day: date) -> dict[tuple[str, str, date], int]:
    customer = world.customers["a"]
    return {(customer, LAST, day): 2, (customer, SUM, day): 5}


def crash_while_sending(world: World, day: date, *, counted: bool) -> Context:
    """Leave the day's events in `sending`, counted by Stripe or not, as a killed run would."""
    with world.unreachable():
        report_days(world.context("killed"), [day])
    context = world.context("after")
    with context.ledger.delivering():
        outgoing = context.ledger.read(deliverable, [day])
        context.ledger.write(claim, [o.id for o in outgoing], world.clock())
    if counted:
        account = world.sandbox.account
        for event in (o.event for o in outgoing):
            given = {
                "event_name": event.cell.event_name,
                "identifier": event.identifier,
                "timestamp": str(event.timestamp),
                "payload": {"stripe_customer_id": event.customer, "value": str(event.value)},
            }
            account.accept_event(account.check_event(given))
    return context


def test_an_event_that_was_counted_unseen_is_recognized_in_the_summary_at_once(
    world: World, day: date
) -> None:
    with world.faults("error_after=1"):
        report_days(world.context(), [day])
    assert set(world.states(day)) == {"accepted"}
    assert world.billed() == due(world, day)


def test_a_stored_500_is_no_answer_and_is_resolved_after_a_day(world: World, day: date) -> None:
    context = world.context()
    with world.faults("error_before=1"):
        report_days(context, [day])
    assert states(context, day)[0][0] == "ambiguous"
    report_days(context, [day])  # Stripe replays its stored 500: nothing is learned, nothing lost
    assert states(context, day)[0][0] == "ambiguous"
    assert world.billed() == {}
    world.advance(hours=24)
    report_days(context, [day])
    assert states(context, day) == [("rejected", "not_counted"), ("accepted", None)]
    assert world.billed() == due(world, day)


@pytest.mark.parametrize("hours", [1, 22, 24, 100])
def test_after_a_crash_usage_that_was_not_counted_is_reported_once(
    world: World, day: date, hours: int
) -> None:
    context = crash_while_sending(world, day, counted=False)
    world.advance(hours=hours)
    report_days(context, [day])
    assert world.billed() == due(world, day)
    assert len(world.sandbox.account.events) == 2


@pytest.mark.parametrize("hours", [1, 22, 24, 100])
def test_after_a_crash_usage_that_was_counted_is_not_counted_again(
    world: World, day: date, hours: int
) -> None:
    context = crash_while_sending(world, day, counted=True)
    world.advance(hours=hours)
    report_days(context, [day])
    assert world.billed() == due(world, day)
    assert len(world.sandbox.account.events) == 2, "sent again after Stripe forgot the identifier"
    assert set(world.states(day)) == {"verified"}


def test_a_summary_that_decides_nothing_leaves_the_event_ambiguous(world: World, day: date) -> None:
    context = crash_while_sending(world, day, counted=False)
    stranger = {
        "event_name": SUM,
        "payload": {"stripe_customer_id": world.customers["a"], "value": "1"},
        "timestamp": str(day_start(day)),
    }
    account = world.sandbox.account
    account.accept_event(account.check_event(stranger))
    world.advance(hours=30)
    report_days(context, [day])
    assert states(context, day) == [("ambiguous", "undecided")]
    assert states(context, day, LAST)[-1][0] == "accepted"


def test_a_recent_attempt_keeps_a_missing_event_open_because_summaries_lag(
    world: World, day: date
) -> None:
    context = crash_while_sending(world, day, counted=False)
    world.advance(hours=24)
    with context.ledger.delivering():
        context.ledger.write(mark_interrupted, world.clock())
        ids = [o.id for o in context.ledger.read(deliverable, [day])]
        context.ledger.write(claim, ids, world.clock())  # tried again just now, by an older program
        outcomes = [Outcome(id, State.AMBIGUOUS) for id in ids]
        context.ledger.write(change_state, outcomes, world.clock(), was={State.SENDING})
    report_days(context, [day])
    assert states(context, day)[0][0] == "ambiguous"
    world.advance(hours=2)
    report_days(context, [day])
    assert world.billed() == due(world, day)


def test_a_zero_that_a_summary_cannot_prove_is_reported_again_on_a_last_meter(world: World) -> None:
    day = yesterday()
    world.make_meters()
    world.make_customers(["idle"])
    world.write_readings(day, {})
    context = world.snapshot(day)
    with world.faults("error_before=1"):
        assert report_days(context, [day]).sent == 0
    assert world.states(day)["ambiguous"] == 1
    world.advance(hours=25)
    assert report_days(context, [day]).sent == 1
    [event] = world.sandbox.account.events
    assert (event.event_name, event.value) == (LAST, 0)


def bill(world: World, readings: int, faults: str = "") -> None:
    """Yesterday turns out to have so many readings; report them while Stripe has these faults."""
    world.write_readings(yesterday(), {"a": {"s": readings}})
    with world.faults(faults):
        report_days(world.snapshot(yesterday()), [yesterday()])


@pytest.fixture
def corrected(world: World) -> World:
    """Reported and verified at 10; a correction to 12 is accepted and not in the summary yet."""
    world.make_meters()
    world.make_customers(["a"])
    bill(world, 10)
    world.verify([yesterday()])
    bill(world, 12, "lag=600")
    return world


def test_a_summary_that_lags_behind_an_accepted_event_proves_nothing(corrected: World) -> None:
    world, day = corrected, yesterday()
    bill(world, 10, "lag=600,error_before=1")  # -2, never counted; the summary says 10 all the same
    assert states(world.context(), day)[-1][0] == "ambiguous"
    world.advance(hours=25)
    report_days(world.context(), [day])
    world.verify([day])
    assert world.billed()[world.customers["a"], SUM, day] == 10


def test_a_correction_that_reverts_one_not_verified_yet_is_resolved_after_the_lag(
    corrected: World,
) -> None:
    world, day = corrected, yesterday()
    bill(world, 10, "lag=600,error_after=1")  # -2, counted, and Stripe replays its 500 for a day
    assert states(world.context(), day)[-1][0] == "ambiguous"
    world.advance(hours=2)
    with world.faults("lag=600"):
        report_days(world.context(), [day])
    assert states(world.context(), day)[-1][0] == "verified"
    assert world.billed()[world.customers["a"], SUM, day] == 10


def share_a_customer(world: World, day: date) -> Context:
    """Organizations a (5 readings) and b (3) with one customer, on the sum meter."""
    world.make_meters()
    world.make_customers(["a"])
    world.write_customers({"a": world.customers["a"], "b": world.customers["a"]})
    world.write_readings(day, {"a": {"s": 5}, "b": {"t": 3}})
    return world.snapshot(day)


def test_two_ambiguous_events_in_one_figure_are_resolved_by_its_only_explanation(
    world: World,
) -> None:
    day = yesterday()
    context = share_a_customer(world, day)
    with world.faults("error_before=1"):
        report_days(context, [day])
    assert world.states(day)["ambiguous"] == 2
    world.advance(hours=25)
    report_days(context, [day])
    assert world.billed() == {(world.customers["a"], SUM, day): 8}


def test_a_figure_without_accepted_events_proves_no_absence(world: World) -> None:
    day = yesterday()
    context = share_a_customer(world, day)
    inner = world.sandbox.account.check_event

    def fail_after_counting(given: dict[str, Any], *, late: bool = False) -> Any:
        event = inner(given, late=late)
        if event.value == 5:
            world.sandbox.account.accept_event(event)
            raise StripeRefusal(500, "counted, but who knows", kind="api_error")
        return event

    world.sandbox.account.check_event = fail_after_counting  # type: ignore[method-assign]
    with world.faults("lag=108000"):  # thirty hours
        report_days(context, [day])
        world.sandbox.account.check_event = inner  # type: ignore[method-assign]
        assert world.states(day)["ambiguous"] == 1
        world.advance(hours=25)  # the summary still shows neither
        report_days(context, [day])
        assert world.states(day)["ambiguous"] == 1
        world.advance(hours=10)
        report_days(context, [day])
    assert world.billed() == {(world.customers["a"], SUM, day): 8}
