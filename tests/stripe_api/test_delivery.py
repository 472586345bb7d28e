"""Delivery over HTTP with the official SDK, against the sandbox with faults on."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger import queries
from billing_pipeline.operations.bill import report_days
from billing_pipeline.operations.day_inputs import unfinished_days
from billing_pipeline.rules.model import Cell, State
from billing_pipeline.rules.planning import PlanOptions
from billing_pipeline.stripe_api import delivery
from tests.support import LAST, NOBODY_LISTENS, SUM, World, yesterday

ORGANIZATIONS = [f"org-{n}" for n in range(12)]


def days(number: int) -> list[date]:
    return [yesterday() - timedelta(days=n) for n in reversed(range(number))]


def furnish(world: World, number_of_days: int) -> dict[date, dict[str, dict[str, int]]]:
    """Meters, customers and readings; returns the usage written."""
    world.make_meters()
    world.make_customers(ORGANIZATIONS)
    usage = {
        day: {
            organization: {f"s{s}": 1 + (d + s) % 4 for s in range(1 + n % 3)}
            for n, organization in enumerate(ORGANIZATIONS)
        }
        for d, day in enumerate(days(number_of_days))
    }
    for day, organizations in usage.items():
        world.write_readings(day, organizations)
    return usage


RETRY = PlanOptions(retry_rejected=True)


def report_unreachable(world: World, day: date) -> None:
    """Count and plan a day; Stripe cannot be reached, so that nothing is sent."""
    with world.unreachable():
        report_days(world.snapshot(day), [day])


def test_a_run_bills_what_the_readings_prove_and_a_second_run_sends_nothing(world: World) -> None:
    usage = furnish(world, 4)
    first = world.bill(usage)
    assert world.billed() == world.due(usage)
    assert first.sent == 4 * len(ORGANIZATIONS) * 2
    assert world.states(*usage) == {"verified": first.sent}
    assert world.bill(usage).sent == 0
    assert world.sandbox.seen["meter_events"] == first.sent
    assert world.sandbox.seen["without_timestamp"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_with_every_temporary_fault_the_bill_is_right_and_nothing_is_counted_twice(
    world: World, seed: int
) -> None:
    world.sandbox.seed = seed
    usage = furnish(world, 3)
    faults = "rate_limit=0.1,error_after=0.1,cut_before=0.1,cut_after=0.1"
    with world.faults(f"{faults},slow=0.02,slow_seconds=0.2"):
        world.bill(usage)
    world.bill(usage)
    assert world.billed() == world.due(usage)
    events = world.sandbox.account.events
    assert len(events) == len({event.identifier for event in events})
    assert set(world.states(*usage)) == {"verified"}
    assert world.sandbox.seen["two_in_flight"] == 0
    for fault in ("rate_limit", "error_after", "cut_before", "cut_after"):
        assert world.sandbox.seen[fault] > 0


def test_events_of_one_customer_and_meter_go_one_by_one_and_in_order(world: World) -> None:
    usage = furnish(world, 6)
    with world.faults("latency=0.01"):
        world.bill(usage)
    assert world.sandbox.seen["two_in_flight"] == 0
    lanes: dict[tuple[str, str], list[int]] = {}
    for event in world.sandbox.account.events:
        lanes.setdefault((event.customer, event.event_name), []).append(event.timestamp)
    assert all(stamps == sorted(stamps) for stamps in lanes.values())


def test_a_repeated_identifier_is_taken_for_accepted(world: World) -> None:
    usage = furnish(world, 1)
    [day] = usage
    context = world.snapshot(day)
    with world.faults("cut_after=1"):
        report_days(context, [day])  # everything is counted, no answer arrives
    world.sandbox.stored.clear()  # Stripe forgot the Idempotency-Keys, but not the identifiers
    report_days(context, [day])
    assert world.billed() == world.due(usage)
    assert set(world.states(day)) == {"verified"}


def test_a_refused_customer_stops_no_other_and_is_not_asked_again(world: World) -> None:
    usage = furnish(world, 1)
    [day] = usage
    world.write_customers({**world.customers, "org-0": "cus_unknown"})
    world.bill(usage)
    assert world.states(day) == {"verified": 22, "rejected": 2}
    codes = {event["error_code"] for event in world.rejected(day)}
    assert codes == {"meter_event_customer_not_found"}
    requests = world.sandbox.seen["meter_events"]
    assert world.bill(usage).sent == 0
    assert world.sandbox.seen["meter_events"] == requests
    world.write_customers(world.customers)  # fixed: another customer is another report
    assert world.bill(usage).sent == 2
    assert world.billed() == world.due(usage)


def test_refused_events_are_sent_again_only_if_a_person_asks(world: World) -> None:
    usage = furnish(world, 1)
    [day] = usage
    context = world.snapshot(day)
    gone = world.sandbox.account.customers.pop(world.customers["org-1"])
    report_days(context, [day])
    assert world.states(day)["rejected"] == 2
    world.sandbox.account.customers[gone["id"]] = gone
    assert report_days(context, [day]).sent == 0
    assert report_days(context, [day], options=RETRY).sent == 2
    assert world.billed() == world.due(usage)


def test_unreachable_stripe_leaves_everything_planned_and_a_later_run_finishes(
    world: World,
) -> None:
    usage = furnish(world, 2)
    with world.unreachable():
        outcome = report_days(world.snapshot(*usage), list(usage))
    assert "cannot be reached" in str(outcome.stopped)
    assert world.states(*usage) == {"planned": 2 * len(ORGANIZATIONS) * 2}
    world.bill(usage)
    assert world.billed() == world.due(usage)


def test_a_first_run_without_stripe_plans_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = furnish(world, 1)
    monkeypatch.setenv("STRIPE_API_BASE", NOBODY_LISTENS)
    monkeypatch.setenv("BILLING_DATABASE_URL", f"sqlite:///{world.home}/new.db")
    [day] = usage
    report_days(world.snapshot(day), [day])
    assert world.states(day) == {"planned": len(ORGANIZATIONS) * 2}


def test_a_refused_key_is_a_configuration_error_and_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = furnish(world, 1)
    [day] = usage
    monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_live_not_for_a_sandbox")
    context = world.snapshot(day)
    with pytest.raises(ConfigurationError) as failure:
        report_days(context, [day])
    assert "STRIPE_SECRET_KEY" in str(failure.value)
    assert "sk_live" not in str(failure.value)
    assert world.states(day) == {}


def test_a_rate_limit_slows_delivery_down_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real delays: with the shortened ones of other tests, ten attempts pass within a second.
    monkeypatch.setattr("billing_pipeline.stripe_api.retrying.LONGEST_DELAY", 8.0)
    usage = furnish(world, 2)
    with world.faults("limit=40"):
        world.bill(usage)
    assert world.sandbox.seen["over_limit"] > 0
    assert world.billed() == world.due(usage)


def test_an_unmapped_organization_is_on_hold_until_it_is_mapped(world: World) -> None:
    usage = furnish(world, 2)
    span = list(usage)
    mapping = dict(world.customers)
    del world.customers["org-3"]
    world.write_customers(world.customers)
    world.bill(usage)
    holds = [(hold.cell.organization_id, hold.reason) for hold in world.holds(*span)]
    assert holds == [("org-3", "no_customer")] * 4
    assert unfinished_days(world.context()) == []
    world.customers = mapping
    world.write_customers(mapping)
    assert unfinished_days(world.context()) == span
    assert world.bill(usage).sent == 4
    assert world.billed() == world.due(usage)
    assert world.holds(*span) == []


def test_organizations_with_one_customer_add_up_on_a_sum_and_wait_on_last(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    world.write_customers({"a": world.customers["a"], "b": world.customers["a"]})
    day = yesterday()
    world.write_readings(day, {"a": {"s": 3}, "b": {"t": 4}})
    world.bill([day])
    assert world.billed() == {(world.customers["a"], SUM, day): 7}
    holds = {(h.cell.organization_id, h.cell.event_name, h.reason) for h in world.holds(day)}
    assert holds == {("a", LAST, "customer_shared"), ("b", LAST, "customer_shared")}
    assert world.states(day) == {"verified": 2, "held": 2}


def test_a_changed_mapping_concerns_only_days_that_are_not_reported_yet(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    old = world.customers["a"]
    first, second = days(2)
    world.write_readings(first, {"a": {"s": 3}})
    world.bill([first])
    world.make_customers(["a"])
    new = world.customers["a"]
    world.write_readings(first, {"a": {"s": 2}})
    world.write_readings(second, {"a": {"s": 5}})
    world.bill([first, second])
    billed = world.billed()
    assert billed[old, SUM, first] == 2
    assert billed[new, SUM, second] == 5
    assert (new, SUM, first) not in billed


def test_a_planned_event_that_grew_too_old_is_never_sent(world: World) -> None:
    usage = furnish(world, 1)
    [day] = usage
    context = world.snapshot(day)
    with world.faults("rate_limit=1"):
        report_days(context, [day])
    assert set(world.states(day)) == {"planned"}
    world.advance(days=36)
    assert report_days(context, [day]).sent == 0
    assert world.billed() == {}
    assert world.states(day) == {"rejected": 24, "held": 24}
    story = context.ledger.read(queries.story, Cell(day, "org-0", SUM))
    assert story.events[0]["state"] == State.REJECTED
    assert [hold.reason for hold in story.held] == ["too_old"]


def test_a_mapping_that_is_fixed_before_anything_was_sent_counts(world: World) -> None:
    usage = furnish(world, 1)
    [day] = usage
    right = dict(world.customers)
    world.write_customers({**right, "org-0": right["org-1"], "org-1": right["org-0"]})
    report_unreachable(world, day)
    world.write_customers(right)
    world.bill(usage)
    assert world.billed() == world.due(usage)
    assert len(world.sandbox.account.events) == len(ORGANIZATIONS) * 2
    assert world.rejected(day) == []


def test_events_of_a_meter_that_is_no_longer_configured_stop_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = furnish(world, 1)
    [day] = usage
    report_unreachable(world, day)
    monkeypatch.setenv(
        "BILLING_METERS",
        '[{"event_name": "active_sensors", "formula": "last", "measure": "active_sensors"}]',
    )
    world.bill(usage)
    assert world.states(day) == {"verified": 12, "planned": 12}


def test_after_a_request_without_an_answer_its_lane_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiohttp import ClientTimeout

    monkeypatch.setattr("billing_pipeline.stripe_api.client.TIMEOUT", ClientTimeout(total=0.5))
    usage = furnish(world, 3)
    with world.faults("slow=0.2,slow_seconds=1.5"):
        world.bill(usage)
    assert world.sandbox.seen["slow"] > 0
    assert world.sandbox.seen["two_in_flight"] == 0
    world.bill(usage)
    assert world.billed() == world.due(usage)


def test_an_event_superseded_while_it_waits_in_a_queue_is_not_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process plans from newer readings between a deliverer's reading and its claim."""
    usage = furnish(world, 1)
    [day] = usage
    claim = delivery._Delivery._claim
    overtaken: list[int] = []

    def overtake(this: Any, ids: list[int]) -> set[int]:
        if not overtaken:
            overtaken.append(1)
            usage[day]["org-0"] = {"s0": 50}
            world.write_readings(day, usage[day])
            report_unreachable(world, day)
        return claim(this, ids)

    monkeypatch.setattr(delivery._Delivery, "_claim", overtake)
    world.bill(usage)
    world.bill(usage)
    assert overtaken
    assert world.billed() == world.due(usage)
    assert len(world.sandbox.account.events) == len(ORGANIZATIONS) * 2


def test_a_refusal_after_a_lost_answer_leaves_the_event_ambiguous(world: World) -> None:
    usage = furnish(world, 1)
    [day] = usage
    context = world.snapshot(day)
    inner, gone = world.sandbox.account.accept_event, dict(world.sandbox.account.customers)

    def take_and_forget(event: Any) -> None:
        inner(event)  # counted; the answer is lost, and the customer is deleted
        world.sandbox.account.customers.clear()

    world.sandbox.account.accept_event = take_and_forget  # type: ignore[method-assign]
    world.sandbox.stored = Forgetful()
    with world.faults("cut_after=1,lag=600"):
        report_days(context, [day])
    world.sandbox.account.accept_event = inner  # type: ignore[method-assign]
    world.sandbox.account.customers.update(gone)
    world.advance(seconds=700)
    report_days(context, [day], options=RETRY)
    assert world.billed() == world.due(usage)


class Forgetful(dict[Any, Any]):
    """A Stripe that remembers no Idempotency-Key."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def test_an_event_that_waited_past_its_window_is_resolved_not_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = furnish(world, 1)
    [day] = usage
    context = world.snapshot(day)
    with world.faults("error_after=1,lag=100000"):
        report_days(context, [day])
    assert set(world.states(day)) == {"ambiguous"}
    world.sandbox.stored.clear()
    world.advance(hours=22, minutes=50)
    drive = delivery._Delivery._drive

    async def slowly(delivery: Any, *arguments: Any) -> Any:
        world.advance(hours=2)  # the queue was long, or the machine slept
        return await drive(delivery, *arguments)

    monkeypatch.setattr(delivery._Delivery, "_drive", slowly)
    report_days(context, [day])
    assert len(world.sandbox.account.events) == len(ORGANIZATIONS) * 2
    assert world.billed() == world.due(usage)


def test_a_snapshot_taken_before_the_day_was_over_is_never_reported(world: World) -> None:
    world.make_meters()
    world.make_customers(["a"])
    today = world.clock().date()
    world.write_readings(today, {"a": {"s": 5}})
    context = world.snapshot(today)
    world.write_readings(today, {"a": {"s": 9}})
    world.advance(hours=25)
    outcome = report_days(context, [today])
    assert "after the day's end" in outcome.not_planned[today]
    assert world.sandbox.account.events == []
    world.bill([today])
    assert world.billed() == world.due({today: {"a": {"s": 9}}})


def test_an_unreadable_snapshot_stops_its_day_and_no_other(world: World) -> None:
    usage = furnish(world, 2)
    first, second = usage
    context = world.snapshot(*usage)
    (world.home / "snapshots" / f"usage_day={first}" / "usage.parquet").write_bytes(b"PAR1")
    outcome = report_days(context, [first, second])
    assert list(outcome.not_planned) == [first]
    del usage[first]
    assert world.billed() == world.due(usage)


def test_days_that_were_counted_and_never_planned_are_unfinished(world: World) -> None:
    usage = furnish(world, 2)
    context = world.snapshot(*usage)
    assert unfinished_days(context) == list(usage)
    world.bill(usage)
    assert unfinished_days(context) == []
    first, _ = usage
    world.write_readings(first, {"org-0": {"s": 40}})
    world.snapshot(first)
    assert unfinished_days(context) == [first]


def test_a_planned_day_that_grew_too_old_is_unfinished_until_it_is_on_hold(world: World) -> None:
    [day] = furnish(world, 1)
    report_unreachable(world, day)
    world.advance(days=60)
    context = world.context()
    assert unfinished_days(context) == [day]
    report_days(context, [day])
    assert unfinished_days(context) == []
    assert world.hold_reasons(day) == {"too_old"}


def test_a_fixed_mapping_makes_days_with_refused_or_shared_usage_stale(world: World) -> None:
    usage = furnish(world, 1)
    [day] = usage
    right = dict(world.customers)
    wrong = {**right, "org-0": "cus_unknown", "org-1": right["org-2"]}
    world.write_customers(wrong)
    world.bill(usage)
    assert world.bill(usage).sent == 0  # plans the day once more, because of the refusals
    assert unfinished_days(world.context()) == []
    world.write_customers({**wrong, "org-0": right["org-0"]})
    assert unfinished_days(world.context()) == [day]
    world.bill(usage)
    world.write_customers(right)
    assert unfinished_days(world.context()) == [day]
    world.bill(usage)
    billed, due = world.billed(), world.due(usage)
    for organization in ("org-0", "org-2", "org-3"):
        key = right[organization], LAST, day
        assert billed[key] == due[key]
