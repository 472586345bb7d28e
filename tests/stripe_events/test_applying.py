"""What Stripe events change: customers, eligibility, periods, and the states of meter events."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.operations.bill import apply_events
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.operations.periods import closing_days
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.stripe_events.backstop import fetch_missed
from billing_pipeline.stripe_events.inbox import MOST_ATTEMPTS, EventState, Inbox
from tests.support import LAST, SUM, World, yesterday
from webhook_handler.envelope import read
from webhook_handler.store import EventStore


@pytest.fixture
def started(world: World) -> World:
    world.make_meters()
    return world


def days_back(count: int) -> list[date]:
    return [yesterday() - timedelta(days=n) for n in reversed(range(count))]


def state_of(world: World, event_id: str) -> tuple[str, int, str | None]:
    record = world.context().inbox.records(ids=[event_id])[0]
    return record["state"], record["attempts"], record["last_error"]


def checked_out(world: World, customer: str, **named: Any) -> dict[str, Any]:
    """A completed checkout of this customer, as Stripe reports it."""
    return world.emit("checkout.session.completed", {"id": "cs", "customer": customer, **named})


# Customers ---------------------------------------------------------------------------------------


def test_a_checkout_maps_an_organization_and_its_usage_on_hold_is_sent(started: World) -> None:
    day = started.bill_yesterday(acme=5)
    assert started.hold_reasons(day) == {"no_customer"}
    session = started.sandbox.billing.open_checkout(
        {"mode": "payment", "client_reference_id": "acme"}
    )
    started.sandbox.billing.complete_checkout(session["id"])
    started.receive()
    started.bill([day])  # a run applies what waits before it plans
    [customer] = started.sandbox.account.customers
    assert started.billed() == {(customer, SUM, day): 5, (customer, LAST, day): 1}
    assert started.hold_reasons(day) == set()


def test_a_learned_customer_makes_days_with_its_holds_unfinished(started: World) -> None:
    day = started.bill_yesterday(acme=5)
    assert unfinished_days(started.context()) == []
    customer = started.sandbox.account.make_customer({})["id"]
    checked_out(started, customer, metadata={"organization_id": "acme"})
    assert started.apply().processed
    assert unfinished_days(started.context()) == [day]


def test_an_organization_with_two_customers_waits_until_one_is_imported(started: World) -> None:
    found = [started.sandbox.account.make_customer({})["id"] for _ in range(2)]
    for customer in found:
        checked_out(started, customer, client_reference_id="acme")
    started.receive()
    day = started.bill_yesterday(acme=5)
    assert started.billed() == {}
    assert started.hold_reasons(day) == {"customer_undecided"}
    started.write_customers({"acme": found[1]})
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert started.billed()[found[1], SUM, day] == 5


# Subscriptions -----------------------------------------------------------------------------------


def subscribed(world: World, status: str, organization: str = "acme") -> str:
    """The id of an organization's subscription, which has changed to this status."""
    world.make_customers([organization])
    subscription = str(world.make_subscription(world.customers[organization])["id"])
    world.advance(seconds=2)
    world.status(subscription, status)
    world.receive()
    return subscription


def test_a_paused_subscription_holds_and_a_resumed_one_releases(started: World) -> None:
    subscription = subscribed(started, "paused")
    day = started.bill_yesterday(acme=5)
    assert started.hold_reasons(day) == {"subscription_inactive"}
    assert started.billed() == {}
    started.advance(seconds=2)
    started.status(subscription, "active")
    started.apply()
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert started.billed()[started.customers["acme"], SUM, day] == 5


def test_an_unknown_status_is_kept_as_it_is_and_never_read_as_active(started: World) -> None:
    subscribed(started, "hibernating")
    day = started.bill_yesterday(acme=5)
    assert started.hold_reasons(day) == {"subscription_unknown"}
    listed = started.context().customers.subscriptions_of({started.customers["acme"]})
    assert listed[started.customers["acme"]][0]["status"] == "hibernating"


def test_the_policy_of_a_status_can_be_configured(
    started: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_SUBSCRIPTION_POLICY", '{"past_due": "hold", "paused": "report"}')
    subscribed(started, "past_due", "late")
    subscribed(started, "paused", "idle")
    day = started.bill_yesterday(late=5, idle=3)
    assert {customer for customer, *_ in started.billed()} == {started.customers["idle"]}
    assert started.hold_reasons(day) == {"subscription_inactive"}


def test_usage_before_a_cancellation_counts_and_after_it_does_not(started: World) -> None:
    days = days_back(4)
    started.make_customers(["acme"])
    for day in days:
        started.write_readings(day, {"acme": {"s": 5}})
    subscription = started.make_subscription(
        started.customers["acme"], backdate_start_date=str(day_start(days[0]))
    )["id"]
    started.advance(seconds=2)
    ended = day_start(days[2])
    started.sandbox.billing.change_subscription(
        subscription, "customer.subscription.deleted", status="canceled", ended_at=ended
    )
    started.receive()
    started.bill(days)
    customer = started.customers["acme"]
    assert started.billed() == {
        (customer, meter, day): value for day in days[:2] for meter, value in ((SUM, 5), (LAST, 1))
    }
    assert [started.hold_reasons(day) for day in days[2:]] == [{"subscription_ended"}] * 2


def test_a_tie_within_one_second_is_decided_by_asking_stripe(started: World) -> None:
    started.make_customers(["acme"])
    customer = started.customers["acme"]
    subscription = started.make_subscription(customer)
    started.status(subscription["id"], "past_due")
    started.status(subscription["id"], "paused")  # all within one second, in any order
    events = [e for e in started.sandbox.account.outbox.events if "subscription" in e["type"]]
    same_second = events[0]["created"]
    for event in events:
        event["created"] = same_second
    store = EventStore(started.context().inbox.engine)
    for event in reversed(events):
        body = json.dumps(event)
        store.keep(read(body), body, started.clock(), "webhook")
    applied = apply_events(started.context())
    assert len(applied.processed) == 3
    known = started.context().customers.subscriptions_of({customer})[customer]
    assert known[0]["status"] == "paused"
    assert started.sandbox.billing.subscription(subscription["id"])["status"] == "paused"


# Invoices ----------------------------------------------------------------------------------------


def close_a_period(world: World, days: list[date]) -> str:
    """The customer of an organization whose period of a month ended just now, with a draft."""
    world.make_customers(["acme"])
    customer = world.customers["acme"]
    start = day_start(days[0])
    subscription = world.make_subscription(customer, backdate_start_date=str(start))
    item = subscription["items"]["data"][0]
    world.advance(seconds=item["current_period_end"] + 60 - world.sandbox.clock())
    world.sandbox.tick()
    return customer


def test_a_draft_invoice_asks_for_the_unfinished_days_of_its_period(started: World) -> None:
    first = (yesterday() - timedelta(days=3)).replace(day=1)
    days = [first + timedelta(days=n) for n in range(3)]
    for day in days:
        started.write_readings(day, {"acme": {"s": 5}})
    close_a_period(started, days)
    assert closing_days(started.context()) == {}
    started.apply()
    missing = closing_days(started.context())
    assert days[-1] in missing
    within_reach = [day for day in missing if day >= started.clock().date() - timedelta(days=33)]
    started.bill(within_reach)
    assert closing_days(started.context()).keys() <= set(missing) - set(within_reach)
    billed = {day for (_, meter, day) in started.billed() if meter == SUM}
    assert days[-1] in billed


def test_a_final_invoice_closes_its_period_and_late_usage_is_on_hold(started: World) -> None:
    first = (yesterday() - timedelta(days=3)).replace(day=1)
    days = [first + timedelta(days=n) for n in range(28)]
    late = days[-1]
    customer = close_a_period(started, days)
    started.write_readings(late, {"acme": {"s": 5}})
    started.receive()
    started.bill([late])
    assert started.billed()[customer, SUM, late] == 5
    started.advance(hours=2)
    started.apply()
    [invoice] = started.sandbox.billing.invoices.values()
    assert invoice["status"] == "paid"
    assert started.sandbox.billing.quantities()[customer, SUM, invoice["period_start"]] == 5
    started.write_readings(late, {"acme": {"s": 9}})
    seen = started.sandbox.seen["meter_events"]
    started.bill([late])
    assert started.sandbox.seen["meter_events"] == seen
    [hold] = [h for h in started.holds(late) if h.cell.event_name == SUM]
    assert (hold.reason, hold.value, hold.target) == ("period_closed", 4, 9)
    assert unfinished_days(started.context()) == []
    periods = started.context().customers.subscriptions_of({customer})[customer][0]["periods"]
    assert [p["final"] for p in periods] == [True, False]
    assert periods[0]["invoice"] == invoice["id"]


# Error reports -----------------------------------------------------------------------------------


def open_reports(world: World) -> list[dict[str, Any]]:
    return world.context().ledger.read(queries.open_reports, world.clock())


def test_a_late_rejection_is_marked_and_sent_again_once_its_cause_is_fixed(started: World) -> None:
    started.sandbox.faults = Faults.parse("late_checks=1,report_after=0")
    started.make_customers(["acme"])
    started.write_customers({**started.customers, "bolt": "cus_misspelt"})
    day = started.bill_yesterday(acme=5, bolt=3)
    assert started.states(day)["accepted"] == 2  # bolt's two: a 200, and never counted
    assert len(started.apply().processed) >= 1
    assert {r["error_code"] for r in started.rejected(day)} == {"meter_event_customer_not_found"}
    [report] = open_reports(started)[:1]
    assert report["code"] == "meter_event_customer_not_found"
    assert report["errors"] == report["matched"] == 1
    requests = started.sandbox.seen["meter_events"]
    started.bill([day])
    assert started.sandbox.seen["meter_events"] == requests  # nothing has changed: nothing is sent
    started.make_customers(["bolt"])
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert started.billed()[started.customers["bolt"], SUM, day] == 3
    assert open_reports(started) == []


def test_events_that_an_archived_meter_lost_are_sent_again_once_it_is_back(started: World) -> None:
    day, account, meter = yesterday(), started.sandbox.account, started.meter_id()
    started.make_customers(["acme"])
    started.sandbox.faults = Faults.parse("late_checks=1,report_after=0")
    inner = account.check_event

    def archived_meanwhile(given: dict[str, Any], *, late: bool = False) -> Any:
        if account.meters[meter]["status"] == "active":
            account.change_meter(meter, status="inactive")
        return inner(given, late=late)

    account.check_event = archived_meanwhile  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="inactive"):  # when it comes to verifying
        started.bill_yesterday(acme=5)
    account.check_event = inner  # type: ignore[method-assign]
    started.apply()
    [refused] = started.rejected(day)
    assert (refused["meter"], refused["error_code"]) == (SUM, "archived_meter")
    started.advance(minutes=10)
    account.change_meter(meter, status="active")
    started.apply()
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert started.billed()[started.customers["acme"], SUM, day] == 5


def test_an_error_report_names_events_by_identifier_or_by_idempotency_key(started: World) -> None:
    started.make_customers(["acme"])
    day = started.bill_yesterday(acme=5)
    by_meter = {e.event_name: e for e in started.sandbox.account.events}
    started.report_errors(
        "meter_event_invalid_value",
        str(by_meter[SUM].key),
        by_meter[LAST].identifier,
        "somebody-else's-0123456789abcdef",
    )
    started.apply()
    assert len(started.rejected(day)) == 2
    [report] = open_reports(started)
    assert (report["errors"], report["matched"]) == (3, 2)


def test_events_that_an_error_report_does_not_name_are_verified_again(started: World) -> None:
    started.make_customers(["acme", "bolt"])
    day = started.bill_yesterday(acme=5, bolt=2)
    assert started.states(day) == {"verified": 4}
    started.lose(5)
    started.report_errors("meter_event_invalid_value", unnamed=1)
    started.apply()
    assert started.states(day) == {"verified": 2, "accepted": 2}
    assert unfinished_days(started.context()) == [day]
    started.advance(hours=25)
    report = started.verify([day])
    assert [check.reported for check in report.mismatched] == ["0"]
    assert started.states(day) == {"verified": 3, "rejected": 1}  # the report explains it


def test_errors_that_a_report_counts_but_does_not_name_are_found_by_summaries(
    started: World,
) -> None:
    names = [f"org-{n:02}" for n in range(12)]  # a report names five of each kind
    readings = {name: n + 1 for n, name in enumerate(names)}
    started.sandbox.faults = Faults.parse("late_checks=1,report_after=9999")
    for name in names:
        started.customers[name] = f"cus_misspelt_{name}"
    started.write_customers(started.customers)
    day = started.bill_yesterday(**readings)
    started.sandbox.faults = Faults.parse("late_checks=1,report_after=0")
    started.apply()
    assert started.states(day) == {"accepted": 14, "rejected": 10}
    started.verify([day])
    assert started.states(day) == {"rejected": 24}
    started.customers.clear()
    started.make_customers(names)
    assert unfinished_days(started.context()) == [day]
    started.bill([day])
    assert started.billed() == started.due({day: {name: {"s": n} for name, n in readings.items()}})
    assert open_reports(started) == []


def test_an_unnamed_loss_is_believed_only_when_lag_cannot_explain_it(started: World) -> None:
    names = [f"org-{n}" for n in range(8)]
    started.make_customers(names)
    started.sandbox.faults = Faults.parse("dropped=1,report_after=9999")
    day = started.bill_yesterday(**dict.fromkeys(names, 3))
    started.sandbox.faults = Faults.parse("report_after=0")
    started.apply()
    started.verify([day])
    assert started.states(day) == {"accepted": 6, "rejected": 10}
    started.advance(hours=23)
    started.verify([day])
    assert started.states(day) == {"accepted": 6, "rejected": 10}
    started.advance(hours=2)
    started.verify([day])
    assert started.states(day) == {"rejected": 16}


def test_without_an_error_report_a_missing_event_stays_a_mismatch(started: World) -> None:
    started.make_customers(["acme"])
    started.sandbox.faults = Faults.parse("dropped=1,report_after=99999999")
    day = started.bill_yesterday(acme=3)
    started.advance(hours=2)
    assert len(started.verify([day]).mismatched) == 2
    assert started.states(day) == {"accepted": 2}


def test_an_error_report_about_a_closed_period_does_not_loop(started: World) -> None:
    first = (yesterday() - timedelta(days=3)).replace(day=1)
    days = [first + timedelta(days=n) for n in range(28)]
    late = days[-1]
    close_a_period(started, days)
    started.write_readings(late, {"acme": {"s": 5}})
    started.sandbox.faults = Faults.parse("dropped=1,report_after=999999")
    started.receive()
    started.bill([late])
    started.advance(hours=2)
    started.sandbox.faults = Faults.parse("report_after=0")
    started.apply()
    seen = started.sandbox.seen["meter_events"]
    for _ in range(3):
        started.bill([late])
        started.apply()
    assert started.sandbox.seen["meter_events"] == seen
    assert started.hold_reasons(late) == {"period_closed"}
    assert unfinished_days(started.context()) == []


# Failures ----------------------------------------------------------------------------------------


def test_a_poisonous_event_fails_alone_is_tried_again_and_then_shown(started: World) -> None:
    poison = started.emit("customer.subscription.updated", {"id": "sub", "no": "customer"})["id"]
    customer = started.sandbox.account.make_customer({})["id"]
    checked_out(started, customer, client_reference_id="acme")
    applied = started.apply()
    assert list(applied.postponed) == [poison]
    assert started.context().customers.mapping() == {"acme": customer}
    assert started.apply().count == 0  # not before its back-off is over
    for _ in range(MOST_ATTEMPTS):
        started.advance(hours=1)
        started.apply()
    state, attempts, error = state_of(started, poison)
    assert (state, attempts) == ("failed", MOST_ATTEMPTS)
    assert "customer" in str(error)
    context = started.context()
    assert context.inbox.replay(state=EventState.FAILED) == [poison]
    assert list(apply_events(context).postponed) == [poison]


def test_an_unknown_type_is_ignored_and_can_be_replayed(started: World) -> None:
    event = started.emit("charge.refunded", {"id": "ch"})["id"]
    assert event in started.apply().ignored
    assert state_of(started, event)[0] == "ignored"
    context = started.context()
    assert context.inbox.replay(type="charge.refunded") == [event]
    assert apply_events(context).ignored == [event]


def test_events_of_the_other_mode_or_of_connected_accounts_are_ignored(started: World) -> None:
    for change in ({"livemode": True}, {"account": "acct_other"}):
        event = checked_out(started, "cus_x", client_reference_id="acme")
        started.sandbox.account.outbox.events[-1].update(change)
        assert event["id"] in started.apply().ignored
    assert started.context().customers.mapping() == {}


def test_an_event_is_applied_and_marked_together_or_not_at_all(
    started: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = checked_out(started, "cus_x", client_reference_id="acme")["id"]
    started.receive()

    def crash(*_: Any, **__: Any) -> None:
        raise OperationalError("UPDATE", {}, RuntimeError("the machine went away"))

    with monkeypatch.context() as broken:
        broken.setattr(Inbox, "mark", crash)
        with pytest.raises(OperationalError):
            apply_events(started.context())
    assert started.context().customers.mapping() == {}
    assert state_of(started, event)[:2] == ("received", 0)
    apply_events(started.context())
    assert started.context().customers.mapping() == {"acme": "cus_x"}


def test_while_stripe_is_unreachable_an_event_loses_no_attempt(started: World) -> None:
    report = started.sandbox.account.outbox.report_errors(None, {"no_meter": [("x", "")]}, 0)
    started.receive()
    with started.unreachable():
        applied = apply_events(started.context())
    assert list(applied.postponed) == [report["id"]]
    assert state_of(started, report["id"])[:2] == ("received", 0)
    started.advance(minutes=2)
    assert apply_events(started.context()).processed == [report["id"]]


# The backstop ------------------------------------------------------------------------------------


def test_the_backstop_stores_events_that_no_webhook_delivered(started: World) -> None:
    context = started.context()
    begun = started.clock() - timedelta(minutes=1)
    for n in range(130):  # more than a page
        started.emit("customer.subscription.updated", {"id": f"sub_{n}"})
    thin = [
        started.sandbox.account.outbox.report_errors(
            None, {"no_meter": [("x", "")]}, started.sandbox.clock()
        )
        for _ in range(120)
    ]
    started.emit("charge.refunded", {"id": "ch"})  # nothing acts on it: not listed
    store = EventStore(context.inbox.engine)
    delivered = json.dumps(started.sandbox.account.outbox.events[-2])
    store.keep(read(delivered), delivered, started.clock(), "webhook")
    listed, missing = fetch_missed(context.inbox, context.gateway, begun, started.clock())
    assert (listed, len(missing)) == (250, 249)
    assert fetch_missed(context.inbox, context.gateway, begun, started.clock()) == (250, [])
    record = context.inbox.records(ids=[thin[0]["id"]])[0]
    assert (record["source"], record["redeliveries"], record["style"]) == ("backstop", 0, "thin")
    assert started.states(yesterday()) == {}
