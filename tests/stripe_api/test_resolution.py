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
from billing_pipeline.rules.model import (
    Cell,
    State,
)
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.stripe_state import StripeRefusal
from billing_pipeline.usage.snapshot import take_snapshot
from tests.support import World, yesterday

METERS = ("active_sensors", "temperature_readings")


@pytest.fixture
def day(world: World) -> date:
    day = yesterday()
    world.make_meters()
    world.make_customers(["a"])
    world.write_readings(day, {"a": {"s": 3, "t": 2}})
    context = world.context()
    take_snapshot(context.engine, context.readings, context.snapshots, day)
    return day


def states(context: Context, day: date, meter: str) -> list[tuple[str, str | None]]:
    events = context.ledger.read(queries.story, Cell(day, "a", meter)).events
    return [(event["state"], event["error_code"]) for event in events]


def due(world: World, day: date) -> dict[tuple[str, str, date], int]:
    customer = world.customers["a"]
    return {(customer, "active_sensors", day): 2, (customer, "temperature_readings", day): 5}


def crash_while_sending(world: World, day: date, *, counted: bool) -> Context:
    """Leave the day's events in `sending`, counted by Stripe or not, as a killed run would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIPE_API_BASE", "http://127.0.0.1:9")
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


def test_an_event_counted_unseen_is_recognized_in_the_summary_at_once(
    world: World, day: date
) -> None:
    world.sandbox.faults = Faults.parse("error_after=1")
    context = world.context()
    report_days(context, [day])
    assert {s for meter in METERS for s, _ in states(context, day, meter)} == {"accepted"}
    assert world.billed() == due(world, day)


def test_a_stored_500_is_not_taken_for_an_answer_and_is_settled_after_a_day(
    world: World, day: date
) -> None:
    world.sandbox.faults = Faults.parse("error_before=1")
    context = world.context()
    report_days(context, [day])
    assert states(context, day, "temperature_readings")[0][0] == "ambiguous"
    world.sandbox.faults = Faults()
    report_days(context, [day])  # Stripe replays its stored 500: nothing is learned, nothing lost
    assert states(context, day, "temperature_readings")[0][0] == "ambiguous"
    assert world.billed() == {}
    world.advance(hours=24)
    report_days(context, [day])
    assert states(context, day, "temperature_readings") == [
        ("rejected", "not_counted"),
        ("accepted", None),
    ]
    assert world.billed() == due(world, day)


@pytest.mark.parametrize("hours", [1, 22, 24, 100])
def test_after_a_crash_what_was_not_counted_is_stated_once(
    world: World, day: date, hours: int
) -> None:
    context = crash_while_sending(world, day, counted=False)
    world.advance(hours=hours)
    report_days(context, [day])
    assert world.billed() == due(world, day)
    assert len(world.sandbox.account.events) == 2


@pytest.mark.parametrize("hours", [1, 22, 24, 100])
def test_after_a_crash_what_was_counted_is_not_counted_again(
    world: World, day: date, hours: int
) -> None:
    context = crash_while_sending(world, day, counted=True)
    world.advance(hours=hours)
    report_days(context, [day])
    assert world.billed() == due(world, day)
    assert len(world.sandbox.account.events) == 2, "sent again after Stripe forgot the identifier"
    assert {s for meter in METERS for s, _ in states(context, day, meter)} == {"verified"}


def test_a_summary_that_decides_nothing_leaves_the_event_ambiguous(world: World, day: date) -> None:
    context = crash_while_sending(world, day, counted=False)
    stranger = {
        "event_name": "temperature_readings",
        "payload": {"stripe_customer_id": world.customers["a"], "value": "1"},
        "timestamp": str(day_start(day)),
    }
    account = world.sandbox.account
    account.accept_event(account.check_event(stranger))
    world.advance(hours=30)
    report_days(context, [day])
    assert states(context, day, "temperature_readings") == [("ambiguous", "undecided")]
    assert states(context, day, "active_sensors")[-1][0] == "accepted"


def test_a_recent_attempt_keeps_a_missing_event_open_because_summaries_lag(
    world: World, day: date
) -> None:
    context = crash_while_sending(world, day, counted=False)
    world.advance(hours=24)
    with context.ledger.delivering():
        context.ledger.write(mark_interrupted, world.clock())
        ids = [o.id for o in context.ledger.read(deliverable, [day])]
        context.ledger.write(claim, ids, world.clock())  # tried again just now, by an older program
        context.ledger.write(
            change_state,
            [Outcome(id, State.AMBIGUOUS) for id in ids],
            world.clock(),
            was={State.SENDING},
        )
    report_days(context, [day])
    assert states(context, day, "temperature_readings")[0][0] == "ambiguous"
    world.advance(hours=2)
    report_days(context, [day])
    assert world.billed() == due(world, day)


def test_a_zero_that_cannot_be_told_from_nothing_is_stated_again_on_a_last_meter(
    world: World,
) -> None:
    day = yesterday()
    world.make_meters()
    world.make_customers(["idle"])
    world.write_readings(day, {})
    context = world.context()
    take_snapshot(context.engine, context.readings, context.snapshots, day)
    world.sandbox.faults = Faults.parse("error_before=1")
    assert report_days(context, [day]).sent == 0
    assert context.ledger.read(queries.counts, [day])["ambiguous"] == 1
    world.sandbox.faults = Faults()
    world.advance(hours=25)
    assert report_days(context, [day]).sent == 1
    (event,) = world.sandbox.account.events
    assert (event.event_name, event.value) == ("active_sensors", 0)


def test_a_summary_that_lags_behind_an_accepted_event_proves_nothing(world: World) -> None:
    day = yesterday()
    world.make_meters()
    world.make_customers(["a"])
    context = world.context()

    def bill(readings: int, faults: str) -> None:
        world.write_readings(day, {"a": {"s": readings}})
        take_snapshot(context.engine, context.readings, context.snapshots, day)
        world.sandbox.faults = Faults.parse(faults)
        report_days(context, [day])

    bill(10, "")
    world.verify([day])
    bill(12, "lag=600")  # +2, accepted, not yet in the summary
    bill(10, "lag=600,error_before=1")  # -2, never counted; the summary says 10 all the same
    assert states(context, day, "temperature_readings")[-1][0] == "ambiguous"
    world.sandbox.faults = Faults()
    world.advance(hours=25)
    report_days(context, [day])
    world.verify([day])
    billed = world.billed()
    assert billed[world.customers["a"], "temperature_readings", day] == 10


def test_a_correction_that_undoes_one_not_verified_yet_is_settled_when_lag_is_over(
    world: World,
) -> None:
    day = yesterday()
    world.make_meters()
    world.make_customers(["a"])
    context = world.context()

    def bill(readings: int, faults: str) -> None:
        world.write_readings(day, {"a": {"s": readings}})
        take_snapshot(context.engine, context.readings, context.snapshots, day)
        world.sandbox.faults = Faults.parse(faults)
        report_days(context, [day])

    bill(10, "")
    world.verify([day])
    bill(12, "lag=600")
    bill(10, "lag=600,error_after=1")  # -2, counted, and Stripe replays its 500 for a day
    assert states(context, day, "temperature_readings")[-1][0] == "ambiguous"
    world.advance(hours=2)
    report_days(context, [day])
    assert states(context, day, "temperature_readings")[-1][0] == "verified"
    assert world.billed()[world.customers["a"], "temperature_readings", day] == 10


def share_a_customer(world: World, day: date) -> Context:
    """Organizations a (5 readings) and b (3) with one customer, on the sum meter."""
    world.make_meters()
    world.make_customers(["a"])
    world.write_customers({"a": world.customers["a"], "b": world.customers["a"]})
    world.write_readings(day, {"a": {"s": 5}, "b": {"t": 3}})
    context = world.context()
    take_snapshot(context.engine, context.readings, context.snapshots, day)
    return context


def test_two_doubtful_events_in_one_figure_are_both_settled_when_it_has_one_explanation(
    world: World,
) -> None:
    day = yesterday()
    context = share_a_customer(world, day)
    world.sandbox.faults = Faults.parse("error_before=1")
    report_days(context, [day])
    world.sandbox.faults = Faults()
    assert context.ledger.read(queries.counts, [day])["ambiguous"] == 2
    world.advance(hours=25)
    report_days(context, [day])
    assert world.billed() == {(world.customers["a"], "temperature_readings", day): 8}


def test_a_figure_that_lacks_what_was_accepted_proves_no_absence(world: World) -> None:
    day = yesterday()
    context = share_a_customer(world, day)
    world.sandbox.faults = Faults.parse("lag=108000")  # thirty hours
    inner = world.sandbox.account.check_event

    def fail_after_counting(given: dict[str, Any], *, late: bool = False) -> Any:
        event = inner(given, late=late)
        if event.value == 5:
            world.sandbox.account.accept_event(event)
            raise StripeRefusal(500, "counted, but who knows", kind="api_error")
        return event

    world.sandbox.account.check_event = fail_after_counting  # type: ignore[method-assign]
    report_days(context, [day])
    world.sandbox.account.check_event = inner  # type: ignore[method-assign]
    assert context.ledger.read(queries.counts, [day])["ambiguous"] == 1
    world.advance(hours=25)  # the summary still shows neither
    report_days(context, [day])
    assert context.ledger.read(queries.counts, [day])["ambiguous"] == 1
    world.advance(hours=10)
    report_days(context, [day])
    assert world.billed() == {(world.customers["a"], "temperature_readings", day): 8}
