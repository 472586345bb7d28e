"""Which days are stale, and for whom: one change must not have everything planned again."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from billing_pipeline.ledger import queries
from billing_pipeline.operations.bill import count_usage, report_days
from billing_pipeline.operations.day_inputs import (
    SpanInputs,
    read_staleness,
    snapshots_of,
    stale_days,
)
from billing_pipeline.rules.day_inputs import Staleness
from tests.support import World, yesterday

DAYS = [yesterday() - timedelta(days=n) for n in (2, 1, 0)]


@pytest.fixture
def billed(world: World) -> World:
    """Three days of two organizations, reported and verified."""
    world.make_meters()
    world.make_customers(["a", "b"])
    for day in DAYS:
        world.write_readings(day, {"a": {"s": 3}, "b": {"s": 2}})
    world.bill(DAYS)
    assert stale_days(world.context()) == []
    return world


def staleness(world: World) -> dict[date, Staleness]:
    context = world.context()
    span = SpanInputs.read(context, context.known_meters(), DAYS)
    with context.ledger.reading() as connection:
        found = read_staleness(span, connection, snapshots_of(context, DAYS))
    return {day: stale for day, (stale, _) in found.items()}


def test_another_customer_for_a_reported_organization_makes_nothing_stale(billed: World) -> None:
    customer = billed.sandbox.account.make_customer({})["id"]
    billed.write_customers({**billed.customers, "a": str(customer)})
    assert stale_days(billed.context()) == []


def test_a_new_organization_makes_only_its_own_cells_stale(billed: World) -> None:
    billed.make_customers(["a", "b", "new"])
    assert set(staleness(billed).values()) == {Staleness(True, frozenset({"new"}))}
    report_days(billed.context("second run"), DAYS)
    planned = billed.context().ledger.read(queries.planned_by, "second run")
    assert {(cell.organization_id, cell.usage_day) for cell, _, _ in planned} == {
        ("new", day) for day in DAYS
    }
    billed.verify(DAYS)
    assert stale_days(billed.context()) == []


def test_usage_on_hold_makes_only_its_organization_stale(billed: World) -> None:
    billed.write_readings(DAYS[0], {"waits": {"s": 4}}, "late.jsonl")
    billed.bill(DAYS[:1])
    assert stale_days(billed.context()) == []
    billed.make_customers(["a", "b", "waits"])
    assert staleness(billed)[DAYS[0]] == Staleness(True, frozenset({"waits"}))


def test_a_late_file_makes_its_whole_day_stale_once_it_is_counted(billed: World) -> None:
    billed.write_readings(DAYS[0], {"a": {"t": 1}}, "late.jsonl")
    assert stale_days(billed.context()) == []
    count_usage(billed.context(), DAYS[0])
    assert staleness(billed)[DAYS[0]] == Staleness(True, None)
    assert stale_days(billed.context()) == DAYS[:1]
