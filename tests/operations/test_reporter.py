"""The small Python API: one organization, one day, the same ledger."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import pytest

from billing_pipeline.operations.reporter import UsageReporter
from billing_pipeline.rules.model import State
from billing_pipeline.rules.values import UsageDefect
from tests.support import SUM, World, yesterday


@pytest.fixture
def noon(world: World) -> datetime:
    world.make_meters()
    world.make_customers(["a"])
    context = world.context()
    context.customers.import_file(world.home / "customers.csv", world.clock())
    return datetime.combine(yesterday(), time(12), tzinfo=UTC)


def test_active_sensors_are_reported_at_their_instant(world: World, noon: datetime) -> None:
    reporter = UsageReporter(world.context())
    result = reporter.report_active_sensors("a", 7, noon)
    assert result.success
    assert result.error is None
    assert result.state is State.ACCEPTED
    (event,) = world.sandbox.account.events
    assert (event.value, event.timestamp) == (7, int(noon.timestamp()))


def test_the_same_report_twice_is_one_event_and_another_count_a_correction(
    world: World, noon: datetime
) -> None:
    reporter = UsageReporter(world.context())
    assert reporter.report_reading_volume("a", 10, noon).success
    assert reporter.report_reading_volume("a", 10, noon).success
    assert reporter.report_reading_volume("a", 7, noon).success
    assert [e.value for e in world.sandbox.account.events] == [10, -3]
    assert world.billed() == {(world.customers["a"], SUM, yesterday()): 7}


def test_the_daily_run_continues_what_the_api_began(world: World, noon: datetime) -> None:
    UsageReporter(world.context()).report_reading_volume("a", 10, noon)
    usage = {yesterday(): {"a": {"s": 4}}}
    world.write_readings(yesterday(), usage[yesterday()])
    world.bill([yesterday()])
    assert world.billed() == world.due(usage)


def test_every_answer_of_stripe_is_returned_as_a_value(world: World, noon: datetime) -> None:
    reporter = UsageReporter(world.context())
    unknown = reporter.report_active_sensors("nobody", 1, noon)
    assert not unknown.success
    assert unknown.state is State.HELD
    assert "no Stripe customer" in str(unknown.error)
    world.sandbox.account.customers.clear()
    refused = reporter.report_active_sensors("a", 1, noon)
    assert not refused.success
    assert refused.state is State.REJECTED
    assert "No such customer" in str(refused.error)
    again = reporter.report_active_sensors("a", 1, noon)
    assert not again.success
    assert world.sandbox.account.events == []


def test_a_lost_answer_is_resolved_before_the_next_report(world: World, noon: datetime) -> None:
    reporter = UsageReporter(world.context())
    with world.faults("error_after=1,lag=3600"):
        assert not reporter.report_reading_volume("a", 10, noon).success
    assert reporter.report_reading_volume("a", 12, noon).success
    assert world.billed() == {(world.customers["a"], SUM, yesterday()): 12}


def test_programming_errors_raise(world: World, noon: datetime) -> None:
    reporter = UsageReporter(world.context())
    with pytest.raises(UsageDefect):
        reporter.report_active_sensors("a", -1, noon)
    with pytest.raises(UsageDefect):
        reporter.report_reading_volume("a", 1.0, noon)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zone"):
        reporter.report_active_sensors("a", 1, noon.replace(tzinfo=None))
    ahead = world.clock() + timedelta(minutes=6)
    assert not reporter.report_active_sensors("a", 1, ahead).success
    assert world.sandbox.account.events == []
