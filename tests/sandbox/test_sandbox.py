"""The sandbox's own rules, asked through the official SDK."""

from __future__ import annotations

import json
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import stripe

from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.server import make_sandbox, running
from tests.support import World, yesterday

NOW = datetime(2026, 3, 11, 12, tzinfo=UTC)


@pytest.fixture
def customer(world: World) -> str:
    world.make_meter("m", "sum")
    world.make_customers(["a"])
    return world.customers["a"]


def send(world: World, customer: str, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "event_name": "m",
        "payload": {"stripe_customer_id": customer, "value": "5"},
        **changes,
    }
    return world.stripe().v1.billing.meter_events.create(given)  # type: ignore[arg-type]


def test_an_identifier_is_refused_for_a_day_and_counted_again_after(
    world: World, customer: str
) -> None:
    send(world, customer, identifier="x")
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier x"):
        send(world, customer, identifier="x")
    world.advance(hours=24, seconds=1)
    send(world, customer, identifier="x")
    assert sum(row["value"] for row in world.sandbox.account.totals()) == 10


def test_a_forgotten_answer_is_not_repeated_but_the_identifier_is_known(
    world: World, customer: str
) -> None:
    def again() -> Any:
        event = {"event_name": "m", "identifier": "x",
                 "payload": {"stripe_customer_id": customer, "value": "5"}}  # fmt: skip
        events = world.stripe().v1.billing.meter_events
        return events.create(event, {"idempotency_key": "k"})  # type: ignore[arg-type]

    world.sandbox.faults = Faults.parse("forgotten=1")
    again()
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier x"):
        again()
    assert sum(row["value"] for row in world.sandbox.account.totals()) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestamp": 1}, "35 days"),
        ({"timestamp": 4_000_000_000}, "future"),
        ({"event_name": "other"}, "No active meter"),
        ({"payload": {"stripe_customer_id": "cus_x", "value": "1"}}, "No such customer"),
        ({"payload": {"value": "1"}}, "no customer"),
        ({"identifier": "x" * 101}, "too long"),
        ({"surprise": "1"}, "unknown parameter"),
    ],
)
def test_the_sandbox_refuses_what_stripe_refuses(
    world: World, customer: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError, match=message):
        send(world, customer, **changes)
    assert world.sandbox.account.events == []


@pytest.mark.parametrize("value", ["1.5", "x", "", "1" * 16, "NaN"])
def test_values_must_be_integers_of_at_most_15_digits(
    world: World, customer: str, value: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        send(world, customer, payload={"stripe_customer_id": customer, "value": value})


@pytest.mark.parametrize(
    ("formula", "window", "total"),
    [
        ("sum", None, 9),
        ("last", None, 4),
        ("count", None, 3),
        ("sum", "day", 2),
        ("last", "day", 2),
    ],
)
def test_formulas_and_windows(world: World, formula: str, window: str | None, total: int) -> None:
    meter = world.make_meter("n", formula, window)
    world.make_customers(["a"])
    client, customer = world.stripe(), world.customers["a"]
    from billing_pipeline.rules.timestamps import day_start

    start = day_start(yesterday())
    for offset, value in [(10, 3), (30, 4), (20, 2)]:  # received in this order
        client.v1.billing.meter_events.create(
            {
                "event_name": "n",
                "payload": {"stripe_customer_id": customer, "value": str(value)},
                "timestamp": start + offset,
            }
        )
    (summary,) = client.v1.billing.meters.event_summaries.list(
        meter,
        {
            "customer": customer,
            "start_time": start,
            "end_time": start + 86_400,
            "value_grouping_window": "day",
        },
    ).data
    assert summary.aggregated_value == total


def test_a_cancelled_event_no_longer_counts(world: World, customer: str) -> None:
    send(world, customer, identifier="x")
    cancel: Any = {"event_name": "m", "type": "cancel", "cancel": {"identifier": "x"}}
    world.stripe().v1.billing.meter_event_adjustments.create(cancel)
    assert list(world.sandbox.account.totals()) == []


def test_a_key_replays_its_first_answer_and_refuses_another_body(
    world: World, customer: str
) -> None:
    client = world.stripe()
    body: Any = {"event_name": "m", "payload": {"stripe_customer_id": customer, "value": "5"}}
    first = client.v1.billing.meter_events.create(body, {"idempotency_key": "k"})
    again = client.v1.billing.meter_events.create(body, {"idempotency_key": "k"})
    assert first.identifier == again.identifier
    assert len(world.sandbox.account.events) == 1
    body["payload"]["value"] = "6"
    with pytest.raises(stripe.IdempotencyError):
        client.v1.billing.meter_events.create(body, {"idempotency_key": "k"})


def test_summaries_lag_by_the_fault(world: World, customer: str) -> None:
    world.sandbox.faults = Faults.parse("lag=60")
    send(world, customer)
    meter = next(iter(world.sandbox.account.meters))
    start = int(world.clock().timestamp()) // 60 * 60 - 3600
    span: Any = {"customer": customer, "start_time": start, "end_time": start + 7200}
    listing = world.stripe().v1.billing.meters.event_summaries
    assert listing.list(meter, span).data == []
    world.advance(seconds=61)
    assert [s.aggregated_value for s in listing.list(meter, span).data] == [5.0]


def test_state_on_disk_survives_the_process(tmp_path: Path) -> None:
    state = tmp_path / "stripe.jsonl"
    first = make_sandbox(state=state, now=NOW)
    first.account.make_meter(
        {"event_name": "m", "display_name": "m", "default_aggregation": {"formula": "sum"}}
    )
    customer = first.account.make_customer({})["id"]
    given = {"event_name": "m", "payload": {"stripe_customer_id": customer, "value": "5"}}
    first.account.accept_event(first.account.check_event({**given, "identifier": "x"}))
    second = make_sandbox(state=state, now=NOW)
    assert list(second.account.totals()) == list(first.account.totals())
    assert second.account.meters == first.account.meters
    with pytest.raises(Exception, match="already exists"):
        second.account.check_event({**given, "identifier": "x"})


def test_the_clock_can_be_set_and_moved() -> None:
    sandbox = make_sandbox(now=NOW)
    with running(sandbox) as base:
        body = json.dumps({"advance": 3600, "faults": "lag=5"}).encode()
        request = urllib.request.Request(f"{base}/_sandbox", body, method="POST")
        with urllib.request.urlopen(request) as answer:
            now = json.load(answer)["now"]
    assert abs(now - NOW.timestamp() - 3600) < 60
    assert sandbox.faults.lag == 5


def test_faults_strike_by_seed_alone() -> None:
    faults = Faults.parse("rate_limit=0.3,cut_after=0.3")
    strikes = [faults.strike(7, f"id-{n}", 1) for n in range(200)]
    assert strikes == [faults.strike(7, f"id-{n}", 1) for n in range(200)]
    assert strikes != [faults.strike(8, f"id-{n}", 1) for n in range(200)]
    assert {"rate_limit", "cut_after", None} == set(strikes)
    with pytest.raises(ValueError, match="no fault is called"):
        Faults.parse("fire=1")
    with pytest.raises(ValueError, match="needs a number"):
        Faults.parse("lag=soon")
