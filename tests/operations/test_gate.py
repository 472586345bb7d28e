"""An outage of ingestion waits at the gate, visibly, until a person lets it through."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.alerts import alerts
from billing_pipeline.operations.bill import count_usage, report_days, verify_days
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.gate import approve_gate, closed_gates
from billing_pipeline.operations.preview import preview_days
from billing_pipeline.rules.timestamps import day_of
from tests.support import LAST, SUM, World, yesterday


@pytest.fixture
def steady(world: World) -> World:
    """Eight days of 120 readings each, billed; and yesterday, of which nothing came."""
    world.make_meters()
    world.make_customers(["acme", "small"])
    days = [yesterday() - timedelta(days=n) for n in range(8, 0, -1)]
    for day in days:
        world.write_readings(day, {"acme": {"s": 60, "t": 55}, "small": {"u": 5}})
    world.bill([*days, yesterday()])
    return world


def billed(world: World, organization: str, meter: str) -> int | None:
    counted = world.sandbox.account.counted(world.customers[organization], meter)
    values = [e.value for e in counted if day_of(e.timestamp) == yesterday()]
    return values[-1] if values else None


def test_an_outage_waits_at_the_gate_and_is_shown(steady: World) -> None:
    context, day = steady.context(), yesterday()
    assert billed(steady, "acme", LAST) is None
    # A zero on a sum is nothing to report; on `last` it would be the period's figure.
    holds = {(h.cell.organization_id, h.cell.event_name, h.reason) for h in steady.holds(day)}
    assert holds == {("acme", LAST, "gate_closed"), ("small", LAST, "gate_closed")}
    [gate] = closed_gates(context)
    assert (gate.day, gate.findings[0].readings, gate.findings[0].usual) == (day, 0, 120)
    assert "closed_gates" in {alert.kind for alert in alerts(context)}
    assert {line.action for line in preview_days(context, [day]).lines} == {"hold"}
    assert unfinished_days(context) == []


def test_late_readings_open_the_gate_by_themselves(steady: World) -> None:
    steady.write_readings(yesterday(), {"acme": {"s": 60, "t": 50}, "small": {"u": 5}})
    steady.bill([yesterday()])
    assert billed(steady, "acme", LAST) == 2
    assert billed(steady, "acme", SUM) == 110
    assert closed_gates(steady.context()) == []


def test_a_gate_that_opens_because_other_days_change_makes_its_day_stale(steady: World) -> None:
    day = yesterday()
    assert unfinished_days(steady.context()) == []
    earlier = [yesterday() - timedelta(days=n) for n in range(8, 3, -1)]
    for each in earlier:  # most of the days before turn out to be as small
        steady.write_readings(each, {})
        count_usage(steady.context(), each)
    assert day not in {gate.day for gate in closed_gates(steady.context())}
    assert day in unfinished_days(steady.context())
    report_days(steady.context(), [day])
    verify_days(steady.context(), [day])
    assert billed(steady, "acme", LAST) == 0
    assert day not in unfinished_days(steady.context())


def test_a_person_lets_exactly_these_counts_through(steady: World) -> None:
    context, day = steady.context(), yesterday()
    with pytest.raises(ConfigurationError, match="needs a reason"):
        approve_gate(context, day, "  ")
    approve_gate(context, day, "the plant was shut")
    assert unfinished_days(context) == [day]
    report_days(context, [day])
    verify_days(context, [day])
    assert billed(steady, "acme", LAST) == 0
    assert steady.holds(day) == []
    assert unfinished_days(context) == []
    with pytest.raises(ConfigurationError, match="nothing to approve"):
        approve_gate(context, day, "again")
    # Other counts than those that were seen are judged again.
    steady.write_readings(day, {"acme": {"s": 1}})
    steady.bill([day])
    assert [gate.day for gate in closed_gates(context)] == [day]
    assert billed(steady, "acme", LAST) == 0


def test_a_collapse_of_reported_usage_waits_too(steady: World) -> None:
    day = yesterday() - timedelta(days=1)
    (steady.home / "readings" / f"reading_date={day}" / "readings.jsonl").unlink()
    before = steady.billed()
    steady.bill([day])
    assert steady.billed() == before
    assert steady.hold_reasons(day) == {"gate_closed"}
