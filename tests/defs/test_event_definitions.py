"""Stripe events in Dagster: the sensors that start runs, the runs, the checks, the alerts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from billing_pipeline.defs import Billing, build_defs
from billing_pipeline.defs.alerting import alert_sensor
from billing_pipeline.defs.schedules import missed_webhooks
from billing_pipeline.defs.sensors import closing_periods, stripe_event_sensor
from billing_pipeline.operations.alerts import alerts
from billing_pipeline.rules.timestamps import day_start
from billing_pipeline.sandbox.faults import Faults
from tests.support import World, yesterday

Tick = Callable[[dg.SensorDefinition, str | None], Any]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def tick(world: World, instance: dg.DagsterInstance) -> Tick:
    world.make_meters()

    def run(sensor: dg.SensorDefinition, cursor: str | None) -> Any:
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"billing": Billing(world.clock)}
        )
        result = sensor(context)
        return context if isinstance(result, dg.SkipReason) else result

    return run


def checked_out(world: World, organization: str) -> str:
    """A completed checkout of a new customer; the event's id."""
    customer = world.sandbox.account.make_customer({})["id"]
    session = {"id": "cs", "customer": customer, "client_reference_id": organization}
    return str(world.emit("checkout.session.completed", session)["id"])


def apply_in_dagster(world: World, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = build_defs({"billing": Billing(world.clock)}).resolve_job_def("apply_stripe_events")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def test_many_events_become_one_run_and_a_repeated_tick_asks_for_the_same_key(
    world: World, tick: Tick
) -> None:
    nothing = tick(stripe_event_sensor, None)
    assert nothing.run_requests == []
    for n in range(5):
        checked_out(world, f"org-{n}")
    world.receive()
    first = tick(stripe_event_sensor, nothing.cursor)
    [request] = first.run_requests
    # The daemon crashed before it kept the cursor: the same key, which Dagster knows already.
    assert tick(stripe_event_sensor, nothing.cursor).run_requests[0].run_key == request.run_key
    assert tick(stripe_event_sensor, first.cursor).run_requests[0].run_key == request.run_key


def test_a_run_that_died_is_replaced_after_a_while(world: World, tick: Tick) -> None:
    checked_out(world, "acme")
    world.receive()
    first = tick(stripe_event_sensor, None)
    world.advance(minutes=11)
    again = tick(stripe_event_sensor, first.cursor)
    assert again.run_requests[0].run_key != first.run_requests[0].run_key


def test_an_event_that_comes_later_with_an_older_time_and_id_is_not_missed(
    world: World, tick: Tick, instance: dg.DagsterInstance
) -> None:
    checked_out(world, "early")
    late = {**world.sandbox.account.outbox.events.pop(), "id": "evt_00000000", "created": 1}
    checked_out(world, "later")
    world.sandbox.account.outbox.events[-1]["id"] = "evt_99999999"
    world.receive()
    first = tick(stripe_event_sensor, None)
    apply_in_dagster(world, instance)
    world.sandbox.account.outbox.events.append(late)  # its transaction commits last
    world.receive()
    second = tick(stripe_event_sensor, first.cursor)
    assert len(second.run_requests) == 1
    apply_in_dagster(world, instance)
    assert set(world.context().customers.mapping()) == {"early", "later"}
    assert tick(stripe_event_sensor, second.cursor).run_requests == []


def test_the_records_are_shown_as_an_external_asset_when_they_change(
    world: World, tick: Tick
) -> None:
    checked_out(world, "acme")
    world.receive()
    first = tick(stripe_event_sensor, None)
    [seen] = first.asset_events
    assert seen.asset_key == dg.AssetKey("stripe_events")
    assert seen.metadata["received"].value == 2  # customer.created too
    assert tick(stripe_event_sensor, first.cursor).asset_events == []


def test_a_run_applies_due_events_and_its_checks_show_what_needs_a_person(
    world: World, tick: Tick, instance: dg.DagsterInstance
) -> None:
    checked_out(world, "acme")
    checked_out(world, "acme")
    poison = world.emit("invoice.paid", {"id": "in"})["id"]
    errors = {"no_meter": [("x", "y")]}
    world.sandbox.account.outbox.report_errors(None, errors, world.sandbox.clock())
    world.receive()
    result = apply_in_dagster(world, instance)
    assert result.success
    [made] = result.asset_materializations_for_node("apply_events")
    counts = {name: value.value for name, value in made.metadata.items()}
    assert counts == {"processed": 3, "ignored": 2, "to_be_tried_again": 1, "failed": 0}
    checks = evaluations(result)
    assert {name: check.passed for name, check in checks.items()} == {
        "events_applied": False,
        "meter_errors": False,
        "unbilled": True,
        "contradictions": False,
    }
    assert poison in str(checks["events_applied"].metadata["errors"].value)
    assert "no_meter" in str(checks["meter_errors"].metadata["reports"].value)


def test_the_check_of_meter_errors_turns_green_when_they_are_repaired(
    world: World, tick: Tick, instance: dg.DagsterInstance
) -> None:
    world.sandbox.faults = Faults.parse("late_checks=1,report_after=0")
    world.write_customers({"acme": "cus_misspelt"})
    world.bill_yesterday(acme=5)
    world.receive()
    first = tick(stripe_event_sensor, None)
    red = evaluations(apply_in_dagster(world, instance))["meter_errors"]
    assert not red.passed
    assert "meter_event_customer_not_found" in str(red.metadata["reports"].value)
    second = tick(stripe_event_sensor, first.cursor)
    world.make_customers(["acme"])
    world.bill([yesterday()])
    third = tick(stripe_event_sensor, second.cursor)
    assert len(third.run_requests) == 1
    assert evaluations(apply_in_dagster(world, instance))["meter_errors"].passed


def test_a_draft_invoice_starts_runs_of_unfinished_days(world: World, tick: Tick) -> None:
    day = yesterday()
    world.write_readings(day, {"acme": {"s": 5}})
    world.make_customers(["acme"])
    start = day_start(day - timedelta(days=3))
    subscription = world.make_subscription(world.customers["acme"], backdate_start_date=str(start))
    assert tick(closing_periods, None).run_requests == []
    world.end_period(subscription, int(world.sandbox.clock()) - 60)
    world.apply()
    first = tick(closing_periods, None)
    [request] = first.run_requests
    today = (
        day + timedelta(days=1)
    ).isoformat()  # the period ended on it: a segment can be reported
    assert request.tags["dagster/asset_partition_range_end"] == today
    assert tick(closing_periods, first.cursor).run_requests == []
    days = [day - timedelta(days=n) for n in range(4)]
    world.bill(days)
    [request] = tick(closing_periods, None).run_requests
    assert request.tags["dagster/asset_partition_range_start"] == today


def test_missed_webhooks_are_looked_for_every_hour_and_far_back_once_a_day(
    world: World, instance: dg.DagsterInstance
) -> None:
    hours = {}
    for hour in range(24):
        context = dg.build_schedule_context(
            scheduled_execution_time=datetime(2026, 3, 1, hour, 20, tzinfo=UTC)
        )
        request: Any = missed_webhooks(context)
        hours[hour] = request.run_config["ops"]["find_missed_events"]["config"]["hours"]
    assert max(hours, key=lambda h: hours[h]) == 3
    assert hours[3] > 72
    world.make_meters()
    checked_out(world, "acme")
    job = build_defs({"billing": Billing(world.clock)}).resolve_job_def("missed_stripe_events")
    assert job.execute_in_process(instance=instance, run_config=request.run_config).success
    assert len(world.apply().processed) == 1
    assert world.context().inbox.records(limit=1)[0]["source"] == "backstop"


@contextmanager
def a_hook(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    heard: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", heard
        server.shutdown()
        thread.join(10)


def test_the_alert_hook_gets_a_change_once_and_its_end(
    world: World, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_hook() as (url, heard):
        monkeypatch.setenv("BILLING_ALERT_URL", url)
        cursor = tick(alert_sensor, None).cursor
        assert heard == []
        world.write_customers({"acme": "cus_unknown"})
        world.bill_yesterday(acme=5)
        cursor = tick(alert_sensor, cursor).cursor
        cursor = tick(alert_sensor, cursor).cursor
        [message] = heard
        assert message["alerts"] == [{"kind": "rejected_events", "count": 2}]
        assert "refused" in message["text"]
        world.make_customers(["acme"])
        world.bill([yesterday()])
        tick(alert_sensor, cursor)
        assert heard[-1]["alerts"] == []
        assert "well again" in heard[-1]["text"]


def test_a_hook_that_refuses_an_alert_gets_it_again(
    world: World, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write_customers({"acme": "cus_unknown"})
    world.bill_yesterday(acme=5)
    with a_hook(500) as (url, heard):
        monkeypatch.setenv("BILLING_ALERT_URL", url)
        for _ in range(2):
            with pytest.raises(OSError, match="500"):
                tick(alert_sensor, None)
        assert len(heard) == 2


def test_an_event_that_nobody_applies_is_an_alert_after_a_quarter_of_an_hour(world: World) -> None:
    world.make_meters()
    checked_out(world, "acme")
    world.receive()
    assert alerts(world.context()) == []
    world.advance(minutes=16)
    assert [alert.kind for alert in alerts(world.context())] == ["oldest_unprocessed_event"]


def test_a_failed_run_is_posted_to_the_hook(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from billing_pipeline.defs.alerting import failed_runs

    checked_out(world, "acme")
    world.receive()
    monkeypatch.setenv("STRIPE_SECRET_KEY", "")
    result = apply_in_dagster(world, instance)
    assert not result.success
    with a_hook() as (url, heard):
        monkeypatch.setenv("BILLING_ALERT_URL", url)
        failure = result.get_run_failure_event()
        context = dg.build_run_status_sensor_context(
            sensor_name="failed_runs",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=failure,
        ).for_run_failure()
        failed_runs(context)
    assert "apply_stripe_events failed" in heard[0]["text"]
