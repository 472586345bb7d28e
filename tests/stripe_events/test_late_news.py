"""Stripe events that come late, twice or out of order: no unit is lost or billed twice."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from billing_pipeline.ledger import queries
from billing_pipeline.ledger.account import known_meters, meter_changed_at
from billing_pipeline.operations.alerts import alerts
from billing_pipeline.operations.bill import apply_events, report_days
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.periods import closing_days, unbilled
from billing_pipeline.rules.eligibility import Eligibility, Period, Policy, Subscription
from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.usage.snapshot import take_snapshot
from tests.support import World, yesterday

SUM, LAST = "temperature_readings", "active_sensors"


@pytest.fixture
def started(world: World) -> World:
    world.make_meters()
    world.make_customers(["acme"])
    return world


def report(world: World, event_name: str, code: str, *identifiers: str, count: int = 0) -> None:
    """Stripe reports errors of a meter: these, and `count` more that it does not name."""
    meter = next(m for m in world.sandbox.account.meters.values() if m["event_name"] == event_name)
    samples = [(identifier, "not counted") for identifier in identifiers]
    world.sandbox.account.outbox.report_errors(
        meter["id"], {code: samples + [("unnamed", "")] * count}, world.sandbox.clock()
    )


def lose(world: World, value: int, event_name: str = SUM) -> Any:
    """Let Stripe forget the event with this value."""
    event = next(
        e for e in world.sandbox.account.events if (e.value, e.event_name) == (value, event_name)
    )
    event.counted = False
    return event


def billed(world: World, day: date) -> int:
    return world.billed().get((world.customers["acme"], SUM, day), 0)


def test_a_report_about_an_earlier_difference_is_made_good(started: World) -> None:
    day = yesterday()
    for readings in (5, 7):
        started.write_readings(day, {"acme": {"s": readings}})
        started.bill([day])
    lost = lose(started, 5)
    report(started, SUM, "meter_event_invalid_value", lost.identifier)
    started.apply()
    assert [r["value"] for r in started.context().ledger.read(queries.rejected, [day])] == [5]
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert billed(started, day) == 7
    assert started.context().ledger.read(queries.rejected, [day]) == []
    assert unfinished_days(started.context()) == []


def test_a_refusal_is_not_hidden_by_a_plan_that_was_withdrawn(started: World) -> None:
    day = yesterday()
    started.write_readings(day, {"acme": {"s": 5}})
    started.bill([day])
    report(started, SUM, "meter_event_invalid_value", lose(started, 5).identifier)
    started.apply()
    mapping = dict(started.customers)
    started.make_customers(["acme"])
    started.sandbox.faults = Faults.parse("rate_limit=1")
    report_days(started.context(), [day])  # planned for the other customer, and not sent
    started.sandbox.faults = Faults()
    started.write_customers(mapping)
    started.bill([day])
    refused = started.context().ledger.read(queries.rejected, [day])
    assert [(r["meter"], r["value"]) for r in refused] == [(SUM, 5)]
    assert "rejected_events" in {alert.kind for alert in alerts(started.context())}


def test_a_cancelled_period_does_not_keep_what_followed_it_open() -> None:
    eligibility = Eligibility(
        (Subscription("old", Policy.UNTIL_END, 0, 50), Subscription("new", Policy.REPORT, 50)),
        (Period("old", 0, 100), Period("old", 0, 50, True), Period("new", 50, 150, True)),
    )
    assert eligibility.hold_reason(None, 40) == HoldReason.PERIOD_CLOSED
    assert eligibility.hold_reason(None, 70) == HoldReason.PERIOD_CLOSED


def in_a_draft(world: World) -> date:
    """A day in a period whose invoice is a draft since a moment ago."""
    today = world.clock().date()
    begun = day_start(today - timedelta(days=20))
    subscription = world.make_subscription(world.customers["acme"], backdate_start_date=str(begun))
    for item in subscription["items"]["data"]:
        item["current_period_end"] = int(world.sandbox.clock()) - 5
    world.sandbox.billing.change_subscription(
        subscription["id"], "customer.subscription.updated", items=subscription["items"]
    )
    world.sandbox.tick()
    return yesterday()


def test_an_event_of_unknown_outcome_is_not_sent_again_into_a_closed_period(started: World) -> None:
    day = in_a_draft(started)
    started.apply()
    started.write_readings(day, {"acme": {"s": 5}})
    started.sandbox.faults = Faults.parse("error_before=1")
    started.bill([day])
    started.sandbox.faults = Faults()
    assert started.context().ledger.read(queries.counts, [day])["ambiguous"] == 2
    started.advance(hours=2)
    started.apply()
    seen = started.sandbox.seen["meter_events"]
    started.bill([day])
    assert started.sandbox.seen["meter_events"] == seen
    assert billed(started, day) == 0
    [held] = [
        h
        for h in started.context().ledger.read(queries.holds_of, [day])
        if h.cell.event_name == SUM
    ]
    assert (held.reason, held.value) == ("period_closed", 5)
    assert "closed_usage" in {alert.kind for alert in alerts(started.context())}


def test_what_was_taken_after_its_invoice_was_final_is_shown_for_ever(started: World) -> None:
    day = in_a_draft(started)
    started.apply()
    started.advance(hours=2)
    started.sandbox.tick()  # final, but nobody has told us yet
    started.write_readings(day, {"acme": {"s": 5}})
    started.bill([day])
    assert billed(started, day) == 5
    assert unbilled(started.context()) == []
    started.apply()
    late = {(e["meter"], e["value"]) for e in unbilled(started.context())}
    assert late == {(SUM, 5), (LAST, 1)}
    assert "unbilled_events" in {alert.kind for alert in alerts(started.context())}


def test_an_invoice_of_a_subscription_never_heard_of_asks_for_it_and_closes_its_period(
    started: World,
) -> None:
    day = in_a_draft(started)
    started.advance(hours=2)
    started.sandbox.tick()
    outbox = started.sandbox.account.outbox
    outbox.events[:] = [e for e in outbox.events if "subscription" not in e["type"]]
    started.apply()
    customer = started.customers["acme"]
    [known] = started.context().customers.subscriptions_of({customer})[customer]
    assert known["status"] == "active"
    started.write_readings(day, {"acme": {"s": 5}})
    started.bill([day])
    assert billed(started, day) == 0
    assert {h.reason for h in started.context().ledger.read(queries.holds_of, [day])} == {
        "period_closed"
    }


def test_a_zero_that_was_lost_is_not_taken_for_a_zero_that_was_said(started: World) -> None:
    first, day = yesterday() - timedelta(days=1), yesterday()
    started.write_readings(first, {"acme": {"s": 2}})
    started.bill([first])
    take_snapshot(*_of(started), day)
    report_days(started.context(), [day])
    lose(started, 0, LAST)
    report(started, LAST, "meter_event_invalid_value", count=1)
    started.apply()
    started.verify([day])
    assert started.context().ledger.read(queries.counts, [day])["verified"] == 0
    started.advance(hours=25)
    started.verify([day])
    assert [r["value"] for r in started.context().ledger.read(queries.rejected, [day])] == [0]


def _of(world: World) -> tuple[Any, Any, Any]:
    context = world.context()
    return context.engine, context.readings, context.snapshots


def test_a_lost_correction_in_the_reported_hour_heals(started: World) -> None:
    day = yesterday()
    for readings in (5, 8):
        started.write_readings(day, {"acme": {"s": readings}})
        started.bill([day])
    lose(started, 3)
    report(started, SUM, "archived_meter", count=1)
    started.apply()
    started.advance(hours=25)
    started.verify([day])
    assert [r["value"] for r in started.context().ledger.read(queries.rejected, [day])] == [3]
    meter = next(m for m in started.sandbox.account.meters.values() if m["event_name"] == SUM)
    started.sandbox.account.change_meter(meter["id"], status="active")
    started.apply()
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert billed(started, day) == 8


def test_a_summary_that_lags_for_hours_is_no_proof_of_a_loss(started: World) -> None:
    day = yesterday()
    started.sandbox.faults = Faults.parse("lag=36000")  # ten hours
    started.write_readings(day, {"acme": {"s": 5}})
    started.bill([day])
    report(started, SUM, "meter_event_invalid_value", count=5)
    started.apply()
    started.advance(hours=2)
    started.verify([day])
    started.write_readings(day, {"acme": {"s": 6}})
    started.bill([day])
    started.advance(hours=12)
    started.verify([day])
    assert billed(started, day) == 6


def test_held_usage_goes_by_the_customer_its_day_was_stated_for(started: World) -> None:
    day = yesterday()
    first = started.customers["acme"]
    subscription = started.make_subscription(first)["id"]
    started.write_readings(day, {"acme": {"s": 5}})
    started.receive()
    started.bill([day])
    started.advance(seconds=2)
    started.status(subscription, "paused")
    started.write_readings(day, {"acme": {"s": 9}})
    started.receive()
    started.bill([day])
    started.make_customers(["acme"])  # the organization pays as another customer from now on
    started.bill([day])
    assert unfinished_days(started.context()) == []
    started.advance(seconds=2)
    started.status(subscription, "active")
    started.apply()
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert started.billed()[first, SUM, day] == 9


def test_while_stripe_is_away_it_is_asked_once_for_all_events(
    started: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        report(started, SUM, "archived_meter", count=1)
    started.receive()
    asked: list[str] = []

    async def slow(_gateway: Any, _kind: str, object_id: str) -> Any:
        from billing_pipeline.errors import StripeUnreachable

        asked.append(object_id)
        started.advance(minutes=1)
        raise StripeUnreachable("away")

    monkeypatch.setattr("billing_pipeline.stripe_events.applying.fetch", slow)
    applied = apply_events(started.context())
    assert len(asked) == 1
    assert len(applied.postponed) == 20


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("checkout.session.completed",
         {"id": "cs", "customer": "cus_x", "client_reference_id": "o" * 9000}),
        ("checkout.session.completed",
         {"id": "cs", "customer": "cus_x", "client_reference_id": "a\0b"}),
        ("invoice.created",
         {"id": "in", "customer": "cus_x", "status": "draft", "period_start": 1_790_000_000_000,
          "period_end": 1_790_000_000_001, "subscription": "sub"}),
        ("invoice.paid",
         {"id": "in", "customer": "cus_x", "status": "paid", "period_start": 1, "period_end": 2,
          "attempt_count": 2**70}),
        ("customer.subscription.updated",
         {"id": "sub", "customer": "cus_x", "status": "active", "start_date": -5}),
        ("customer.deleted", {}),
    ],
)  # fmt: skip
def test_an_odd_event_fails_alone_on_both_databases(
    world: World, database_url: str, monkeypatch: pytest.MonkeyPatch, kind: str, about: Any
) -> None:
    monkeypatch.setenv("BILLING_DATABASE_URL", database_url)
    world.make_meters()
    odd = world.emit(kind, {**about, "private": "jane.doe@example.com"})["id"]
    session = {"id": "cs", "customer": "cus_1", "client_reference_id": "acme"}
    world.emit("checkout.session.completed", session)
    applied = world.apply()
    assert list(applied.postponed) == [odd]
    assert "jane.doe" not in applied.postponed[odd]
    assert world.context().customers.mapping() == {"acme": "cus_1"}
    assert closing_days(world.context()) == {}


def test_a_report_that_is_replayed_forgets_nothing_it_explained(started: World) -> None:
    day = yesterday()
    started.write_readings(day, {"acme": {"s": 5}})
    started.bill([day])
    lose(started, 5)
    report(started, SUM, "meter_event_invalid_value", count=1)
    started.apply()
    started.advance(hours=25)
    started.verify([day])
    context = started.context()
    context.inbox.replay(type="v1.billing.meter.error_report_triggered")
    apply_events(context)
    [known] = context.ledger.read(queries.open_reports, started.clock())
    assert (known["errors"], known["matched"]) == (1, 1)


def test_an_older_change_of_a_meter_does_not_hide_a_newer_one(started: World) -> None:
    meter = next(iter(started.sandbox.account.meters))
    context = started.context()
    report_days(context, [yesterday()])
    later = started.clock() + timedelta(days=1)
    with context.ledger.planning() as writer:
        assert meter_changed_at(writer, meter, later)
        assert meter_changed_at(writer, meter, later - timedelta(minutes=9))
        assert not meter_changed_at(writer, "mtr_other", later)
    changed = {
        m.meter_id: m.changed_at
        for m in context.ledger.read(known_meters, context.settings.billing_meters)
    }
    assert changed[meter] == int(later.timestamp())


def test_a_deleted_draft_closes_nothing_and_asks_for_nothing(started: World) -> None:
    in_a_draft(started)
    started.apply()
    assert closing_days(started.context()) != {}
    [invoice] = started.sandbox.billing.invoices.values()
    started.advance(seconds=30)
    started.emit("invoice.deleted", invoice)
    started.sandbox.billing.invoices.clear()
    started.apply()
    assert closing_days(started.context()) == {}
    assert started.context().customers.final_periods() == []
