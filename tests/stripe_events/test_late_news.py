"""Stripe events that come late, twice or out of order: no unit is lost or billed twice."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from billing_pipeline.errors import StripeUnreachable
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.account import known_meters, meter_changed_at
from billing_pipeline.operations.alerts import alerts
from billing_pipeline.operations.bill import apply_events, report_days
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.periods import closing_days, unbilled
from billing_pipeline.rules.eligibility import Eligibility, Period, Policy, Subscription
from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.timestamps import day_start
from tests.support import LAST, SUM, World, yesterday


@pytest.fixture
def started(world: World) -> World:
    world.make_meters()
    world.make_customers(["acme"])
    return world


INVALID = "meter_event_invalid_value"


def billed(world: World, day: date) -> int:
    return world.billed().get((world.customers["acme"], SUM, day), 0)


def test_an_error_report_about_an_earlier_correction_is_corrected(started: World) -> None:
    for readings in (5, 7):
        day = started.bill_yesterday(acme=readings)
    started.report_errors(INVALID, started.lose(5).identifier)
    started.apply()
    assert [event["value"] for event in started.rejected(day)] == [5]
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert billed(started, day) == 7
    assert started.rejected(day) == []
    assert unfinished_days(started.context()) == []


def test_a_refusal_is_not_hidden_by_a_plan_that_was_withdrawn(started: World) -> None:
    day = started.bill_yesterday(acme=5)
    started.report_errors(INVALID, started.lose(5).identifier)
    started.apply()
    mapping = dict(started.customers)
    started.make_customers(["acme"])
    with started.faults("rate_limit=1"):
        report_days(started.context(), [day])  # planned for the other customer, and not sent
    started.write_customers(mapping)
    started.bill([day])
    assert [(event["meter"], event["value"]) for event in started.rejected(day)] == [(SUM, 5)]
    assert "rejected_events" in {alert.kind for alert in alerts(started.context())}


def test_a_cancelled_period_does_not_keep_the_next_period_open() -> None:
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
    world.end_period(subscription, int(world.sandbox.clock()) - 5)
    world.sandbox.tick()
    return yesterday()


def test_an_event_of_unknown_outcome_is_not_sent_again_into_a_closed_period(started: World) -> None:
    day = in_a_draft(started)
    started.apply()
    with started.faults("error_before=1"):
        started.bill_yesterday(acme=5)
    assert started.states(day)["ambiguous"] == 2
    started.advance(hours=2)
    started.apply()
    seen = started.sandbox.seen["meter_events"]
    started.bill([day])
    assert started.sandbox.seen["meter_events"] == seen
    assert billed(started, day) == 0
    [hold] = [h for h in started.holds(day) if h.cell.event_name == SUM]
    assert (hold.reason, hold.value) == ("period_closed", 5)
    assert "closed_usage" in {alert.kind for alert in alerts(started.context())}


def test_usage_accepted_after_its_invoice_was_final_stays_shown(started: World) -> None:
    day = in_a_draft(started)
    started.apply()
    started.advance(hours=2)
    started.sandbox.tick()  # final, but its event has not come yet
    started.bill_yesterday(acme=5)
    assert billed(started, day) == 5
    assert unbilled(started.context()) == []
    started.apply()
    late = {(e["meter"], e["value"]) for e in unbilled(started.context())}
    assert late == {(SUM, 5), (LAST, 1)}
    assert "unbilled_events" in {alert.kind for alert in alerts(started.context())}


def test_an_invoice_of_an_unknown_subscription_asks_for_it_and_closes_its_period(
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
    started.bill_yesterday(acme=5)
    assert billed(started, day) == 0
    assert started.hold_reasons(day) == {"period_closed"}


def test_a_lost_zero_does_not_pass_for_a_reported_zero(started: World) -> None:
    first, day = yesterday() - timedelta(days=1), yesterday()
    started.write_readings(first, {"acme": {"s": 2}})
    started.bill([first])
    report_days(started.snapshot(day), [day])
    started.lose(0, LAST)
    started.report_errors(INVALID, unnamed=1, event_name=LAST)
    started.apply()
    started.verify([day])
    assert "verified" not in started.states(day)
    started.advance(hours=25)
    started.verify([day])
    assert [event["value"] for event in started.rejected(day)] == [0]


def test_a_lost_correction_is_reported_again_once_the_meter_is_back(started: World) -> None:
    for readings in (5, 8):
        day = started.bill_yesterday(acme=readings)
    started.lose(3)
    started.report_errors("archived_meter", unnamed=1)
    started.apply()
    started.advance(hours=25)
    started.verify([day])
    assert [event["value"] for event in started.rejected(day)] == [3]
    started.sandbox.account.change_meter(started.meter_id(), status="active")
    started.apply()
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert billed(started, day) == 8


def test_a_summary_that_lags_for_hours_is_no_proof_of_a_loss(started: World) -> None:
    with started.faults("lag=36000"):  # ten hours
        day = started.bill_yesterday(acme=5)
        started.report_errors(INVALID, unnamed=5)
        started.apply()
        started.advance(hours=2)
        started.verify([day])
        started.write_readings(day, {"acme": {"s": 6}})
        started.bill([day])
        started.advance(hours=12)
        started.verify([day])
    assert billed(started, day) == 6


def test_a_hold_depends_on_the_customer_that_its_day_was_reported_for(started: World) -> None:
    first = started.customers["acme"]
    subscription = started.make_subscription(first)["id"]
    started.receive()
    started.bill_yesterday(acme=5)
    started.advance(seconds=2)
    started.status(subscription, "paused")
    started.receive()
    day = started.bill_yesterday(acme=9)
    started.make_customers(["acme"])  # the organization pays as another customer from now on
    started.bill([day])
    assert unfinished_days(started.context()) == []
    started.advance(seconds=2)
    started.status(subscription, "active")
    started.apply()
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert started.billed()[first, SUM, day] == 9


def test_while_stripe_is_unreachable_it_is_asked_once_for_all_events(
    started: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        started.report_errors("archived_meter", unnamed=1)
    started.receive()
    asked: list[str] = []

    async def slow(_gateway: Any, _kind: str, object_id: str) -> Any:
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


def test_a_replayed_error_report_keeps_what_it_explained(started: World) -> None:
    day = started.bill_yesterday(acme=5)
    started.lose(5)
    started.report_errors(INVALID, unnamed=1)
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


def test_a_deleted_draft_closes_no_period_and_needs_no_run(started: World) -> None:
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
