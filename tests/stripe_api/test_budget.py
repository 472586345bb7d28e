"""Reads of Stripe's figures have a monthly budget: never exceeded, and spent where it counts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from billing_pipeline.database import open_database
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.ledger.reads import reads_used
from billing_pipeline.operations.bill import verify_days
from billing_pipeline.rules.model import Cell
from billing_pipeline.stripe_api.budget import LEASE, Reads, ReadsUsedUp
from tests.support import SUM, World, yesterday

NAMES = [f"org-{n}" for n in range(10)]
USAGE = {name: {"s": n + 1} for n, name in enumerate(NAMES)}


@pytest.fixture
def crowd(world: World) -> World:
    """Ten organizations with readings of yesterday: twenty figures to compare."""
    world.make_meters()
    world.make_customers(NAMES)
    world.write_readings(yesterday(), USAGE)
    return world


def days_left(world: World) -> int:
    """Of this month, today included."""
    today = world.clock().date()
    return ((today.replace(day=1) + timedelta(days=32)).replace(day=1) - today).days


def test_an_even_share_is_read_each_day_and_the_rest_is_named(
    crowd: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After the tenth that is kept for resolving: six reads for each day that is left.
    budget = -(-60 * days_left(crowd) // 9)
    monkeypatch.setenv("BILLING_VERIFICATION_READS", str(budget))
    crowd.bill([yesterday()])
    assert crowd.sandbox.seen["summaries"] == 6
    assert crowd.states(yesterday())["verified"] == 6
    # However often it is run on this day: the sensor asks hourly for what is not verified.
    for _ in range(3):
        assert verify_days(crowd.context(), [yesterday()]).postponed == 14
    assert crowd.sandbox.seen["summaries"] == 6
    report = verify_days(crowd.context(), [yesterday()], everything=True)
    assert report.agreed + report.postponed == 20
    assert report.share == report.agreed / 20


def test_the_next_day_has_a_share_of_its_own(crowd: World, monkeypatch: pytest.MonkeyPatch) -> None:
    day = yesterday()
    crowd.advance(days=days_left(crowd))  # the first of a month
    share = days_left(crowd)
    monkeypatch.setenv("BILLING_VERIFICATION_READS", str(-(-20 * share // 9)))  # two a day
    crowd.bill([day])
    assert crowd.sandbox.seen["summaries"] == 2
    crowd.advance(days=1)
    verify_days(crowd.context(), [day])
    assert crowd.sandbox.seen["summaries"] == 4


def test_the_budget_of_a_month_is_never_exceeded(
    crowd: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_VERIFICATION_READS", "10")
    month = crowd.clock().month
    crowd.bill([yesterday()])
    for _ in range(31):
        verify_days(crowd.context(), [yesterday()], everything=True)
        assert crowd.sandbox.seen["summaries"] <= 9  # one is kept for resolving
        crowd.advance(days=1)
        if crowd.clock().month != month:
            break
    assert crowd.sandbox.seen["summaries"] == 9
    verify_days(crowd.context(), [yesterday()], everything=True)  # a new month, a new budget
    assert crowd.sandbox.seen["summaries"] == 18


def test_figures_that_changed_are_compared_first(
    crowd: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd.bill([yesterday()])
    crowd.write_readings(yesterday(), USAGE | {"org-7": {"s": 50}})
    earlier = yesterday() - timedelta(days=1)
    crowd.write_readings(earlier, {name: {"s": 1} for name in NAMES})
    today = crowd.clock().date()
    used = crowd.context().ledger.read(reads_used, today.replace(day=1), today)
    budget = -(-(used + 1) * 10 // 9)  # one read more for comparing
    monkeypatch.setenv("BILLING_VERIFICATION_READS", str(budget))
    crowd.bill([earlier, yesterday()])
    story = crowd.context().ledger.read(queries.story, Cell(yesterday(), "org-7", SUM))
    states = {event["value"]: event["state"] for event in story.events}
    assert states == {8: "verified", 42: "verified"}
    assert crowd.states(earlier)["verified"] == 1  # by the same call


def test_without_reads_ambiguous_events_wait(crowd: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_VERIFICATION_READS", "0")
    with crowd.faults("error_after=1"):
        crowd.bill([yesterday()])
    assert crowd.sandbox.seen["summaries"] == 0
    assert crowd.states(yesterday())["ambiguous"] == 20
    monkeypatch.setenv("BILLING_VERIFICATION_READS", "1000000")
    crowd.bill([yesterday()])
    assert crowd.states(yesterday())["verified"] == 20
    assert crowd.billed() == crowd.due({yesterday(): USAGE})


def test_two_processes_share_one_budget_and_give_back_unused_reads(world: World) -> None:
    now = datetime(2026, 3, 31, 23, 59, tzinfo=UTC)

    def reads(limit: int, month: int) -> Reads:
        return Reads(ledger, limit, lambda: now if month == 3 else now + timedelta(minutes=2))

    def used(month: int) -> int:
        return ledger.read(reads_used, date(2026, month, 1), date(2026, month, 30 + month % 2))

    ledger = Ledger(open_database(world.environment["BILLING_DATABASE_URL"]), "test")
    one, other = reads(LEASE + 3, 3), reads(LEASE + 3, 3)
    for _ in range(LEASE):
        one.spend()
    for _ in range(3):
        other.spend()
    for spent in (one, other):
        with pytest.raises(ReadsUsedUp, match="used up"):
            spent.spend()
    assert (used(3), used(4)) == (LEASE + 3, 0)
    with reads(100, 4) as fresh:
        fresh.spend()
    assert (used(3), used(4)) == (LEASE + 3, 1)
    with Reads(ledger, 100, lambda: now) as late:
        late.spend()
        now += timedelta(minutes=2)  # what was leased in March is given back to March
    assert (used(3), used(4)) == (LEASE + 4, 1)
    ledger.engine.dispose()
