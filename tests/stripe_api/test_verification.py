"""A 200 is not billing: verification finds what was dropped, doubled or still on its way."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from billing_pipeline.ledger import queries
from billing_pipeline.operations.bill import verify_days
from tests.support import SUM, World, yesterday


@pytest.fixture
def day(world: World) -> date:
    world.make_meters()
    world.make_customers(["a", "b"])
    world.write_readings(yesterday(), {"a": {"s": 3}, "b": {"t": 1}})
    return yesterday()


def test_events_stay_accepted_while_summaries_lag(world: World, day: date) -> None:
    with world.faults("lag=600"):
        world.bill([day])
        assert world.states(day) == {"accepted": 4}
        assert world.verify([day]).lagging == 4
        world.advance(seconds=700)
        assert world.verify([day]).agreed == 4
    assert world.states(day) == {"verified": 4}


def test_waiting_for_a_short_lag_verifies_in_one_go(world: World, day: date) -> None:
    with world.faults("lag=1"):
        world.bill([day])
        report = verify_days(world.context(), [day], wait_seconds=20)
    assert (report.lagging, report.mismatched) == (0, [])
    assert world.states(day) == {"verified": 4}


def test_a_dropped_event_is_a_mismatch_once_lag_cannot_explain_it(world: World, day: date) -> None:
    with world.faults("dropped=1"):
        world.bill([day])
    assert world.verify([day]).lagging == 4
    world.advance(hours=2)
    report = world.verify([day])
    assert len(report.mismatched) == 4
    [first, *_] = world.context().ledger.read(queries.checks, [day], "mismatch")
    assert first["reported"] == "0"
    assert world.states(day) == {"accepted": 4}


def test_usage_that_somebody_else_added_is_a_mismatch_at_once(world: World, day: date) -> None:
    world.bill([day])
    account = world.sandbox.account
    mine = next(e for e in account.events if e.event_name == SUM)
    stranger = {
        "event_name": mine.event_name,
        "payload": {"stripe_customer_id": mine.customer, "value": "1"},
        "timestamp": str(mine.timestamp),
    }
    account.accept_event(account.check_event(stranger))
    [wrong] = world.verify([day]).mismatched
    assert wrong.figure.customer == mine.customer
    assert wrong.reported == str(mine.value + 1)


def test_a_span_takes_one_read_per_customer_and_meter(world: World, day: date) -> None:
    days = [day - timedelta(days=n) for n in range(20)]
    for each in days:
        world.write_readings(each, {"a": {"s": 1}, "b": {"t": 2}})
    world.bill(days)
    assert world.sandbox.seen["summaries"] == 4
    world.sandbox.seen.clear()
    assert world.verify(days).agreed == 80
    assert world.sandbox.seen["summaries"] == 4


def test_a_customer_stripe_does_not_know_is_a_mismatch_and_stops_no_other(
    world: World, day: date
) -> None:
    with world.faults("lag=600"):
        world.bill([day])
        world.sandbox.account.customers.pop(world.customers["a"])
        world.advance(seconds=700)
        report = world.verify([day])
    assert (report.agreed, len(report.mismatched), len(report.unread)) == (2, 2, 2)
