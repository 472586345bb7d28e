"""An outage of ingestion is held at the gate, visibly, until a person lets it through."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.operations.alerts import alerts
from billing_pipeline.operations.bill import (
    count_usage,
    report_days,
    verify_days,
)
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.gate import approve_gate, closed_gates
from billing_pipeline.operations.preview import preview_days
from tests.support import World, yesterday

SUM, LAST = "temperature_readings", "active_sensors"


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
    values = [e.value for e in counted if e.timestamp // 86_400 == yesterday().toordinal() - 719163]
    return values[-1] if values else None


def test_an_outage_is_held_and_seen(steady: World) -> None:
    context, day = steady.context(), yesterday()
    assert billed(steady, "acme", LAST) is None
    held = context.ledger.read(queries.holds_of, [day])
    # A zero on a sum is nothing to report; on `last` it would be the period's figure.
    assert {(h.cell.organization_id, h.cell.event_name, h.reason) for h in held} == {
        ("acme", LAST, "gate_closed"),
        ("small", LAST, "gate_closed"),
    }
    [gate] = closed_gates(context)
    assert (gate.day, gate.findings[0].readings, gate.findings[0].usual) == (day, 0, 120)
    assert "closed_gates" in {alert.kind for alert in alerts(context)}
    assert {line.action for line in preview_days(context, [day]).lines} == {"hold"}
    assert unfinished_days(context) == []


def test_readings_that_come_after_all_open_the_gate_by_themselves(steady: World) -> None:
    steady.write_readings(yesterday(), {"acme": {"s": 60, "t": 50}, "small": {"u": 5}})
    steady.bill([yesterday()])
    assert billed(steady, "acme", LAST) == 2
    assert billed(steady, "acme", SUM) == 110
    assert closed_gates(steady.context()) == []


def test_a_gate_that_opens_as_other_days_change_lets_its_day_be_stated(steady: World) -> None:
    day = yesterday()
    assert unfinished_days(steady.context()) == []
    earlier = [yesterday() - timedelta(days=n) for n in range(8, 3, -1)]
    for each in earlier:  # most of the days it is compared with turn out to be as small
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
    assert context.ledger.read(queries.holds_of, [day]) == []
    assert unfinished_days(context) == []
    with pytest.raises(ConfigurationError, match="nothing to approve"):
        approve_gate(context, day, "again")
    # Other counts than those that were seen are judged again.
    steady.write_readings(day, {"acme": {"s": 1}})
    steady.bill([day])
    assert [gate.day for gate in closed_gates(context)] == [day]
    assert billed(steady, "acme", LAST) == 0


def test_a_collapse_of_what_was_stated_is_held_too(steady: World) -> None:
    day = yesterday() - timedelta(days=1)
    (steady.home / "readings" / f"reading_date={day}" / "readings.jsonl").unlink()
    before = steady.billed()
    steady.bill([day])
    assert steady.billed() == before
    assert {h.reason for h in steady.context().ledger.read(queries.holds_of, [day])} == {
        "gate_closed"
    }
