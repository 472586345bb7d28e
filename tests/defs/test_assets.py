"""Runs of the billing job in process, on a real instance: each day for itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from billing_pipeline.defs import Billing, build_defs
from tests.support import World, yesterday

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        yield instance


class Runner:
    def __init__(self, world: World, instance: dg.DagsterInstance) -> None:
        self.world = world
        self.instance = instance
        self.billing = Billing(clock=world.clock, unattended=False)
        self.defs = build_defs({"billing": self.billing})

    def run(
        self, first: date, last: date, assets: list[str] | None = None, **config: Any
    ) -> dg.ExecuteInProcessResult:
        job = self.defs.resolve_job_def("bill_days")
        return job.execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            asset_selection=[dg.AssetKey(name) for name in assets] if assets else None,
            tags=dict(zip(RANGE, (first.isoformat(), last.isoformat()), strict=True)),
            run_config={
                "ops": {"bill_usage_days": {"config": {"verify_wait_seconds": 5, **config}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
        )

    def materialized(self, asset: str) -> set[str]:
        return set(self.instance.get_materialized_partitions(dg.AssetKey(asset)))


@pytest.fixture
def runner(world: World, instance: dg.DagsterInstance) -> Runner:
    world.make_meters()
    world.make_customers(["a", "b"])
    return Runner(world, instance)


def checks(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], bool]:
    return {(c.check_name, c.partition): c.passed for c in result.get_asset_check_evaluations()}


def metadata(result: dg.ExecuteInProcessResult, asset: str, day: date) -> dict[str, Any]:
    for event in result.get_asset_materialization_events():
        if event.asset_key == dg.AssetKey(asset) and event.partition == day.isoformat():
            return {k: v.value for k, v in event.materialization.metadata.items()}
    raise AssertionError(f"{asset} of {day} was not materialized")


def test_a_run_of_days_materializes_checks_reports_and_verifies_each(runner: Runner) -> None:
    days = [yesterday() - timedelta(days=n) for n in (2, 1, 0)]
    usage = {day: {"a": {"s": 3, "t": 2}, "b": {"u": 1}} for day in days}
    for day in days:
        runner.world.write_readings(day, usage[day])
    result = runner.run(days[0], days[-1])
    assert result.success
    keys = {day.isoformat() for day in days}
    for asset in ("sensor_activity", "usage_snapshot", "meter_events", "verification"):
        assert runner.materialized(asset) == keys
    assert set(checks(result).values()) == {True}
    assert len(checks(result)) == 5 * 3
    assert runner.world.billed() == runner.world.due(usage)
    facts = metadata(result, "usage_snapshot", days[0])
    assert (facts["readings"], facts["rows_read"], facts["dagster/row_count"]) == (6, 6, 2)
    assert "readings.jsonl" in facts["files"]
    assert "| a " in facts["largest_organizations"]
    assert metadata(result, "meter_events", days[0])["verified"] == 0
    assert metadata(result, "verification", days[0])["agrees"] == 4
    again = runner.run(days[0], days[-1])
    assert again.success
    assert runner.billing.outcome.reporting.sent == 0


def test_a_day_whose_files_have_not_changed_is_not_counted_again(runner: Runner) -> None:
    day = yesterday()
    runner.world.write_readings(day, {"a": {"s": 3}})
    folder = runner.world.home / "snapshots" / f"usage_day={day}"

    def written() -> list[int]:
        return [
            (folder / n).stat().st_mtime_ns for n in ("sensor_activity.parquet", "usage.parquet")
        ]

    assert runner.run(day, day).success
    first = written()
    again = runner.run(day, day)
    assert again.success
    assert written() == first
    assert checks(again)["conservation", day.isoformat()]
    assert metadata(again, "usage_snapshot", day)["readings"] == 3
    assert metadata(again, "sensor_activity", day)["dagster/row_count"] == 1
    assert runner.run(day, day, recount=True).success
    assert all(new > old for new, old in zip(written(), first, strict=True))
    # A snapshot that cannot be read is not taken for counted.
    (folder / "usage.parquet").write_bytes(b"PAR1 and then the disk was full")
    assert runner.run(day, day).success
    runner.world.write_readings(day, {"a": {"s": 3, "t": 1}})
    assert runner.run(day, day).success
    assert runner.world.billed() == runner.world.due({day: {"a": {"s": 3, "t": 1}}})


def test_a_day_that_cannot_be_counted_waits_alone_and_the_run_names_it(runner: Runner) -> None:
    days = [yesterday() - timedelta(days=n) for n in (2, 1, 0)]
    usage = {day: {"a": {"s": 3}} for day in days}
    for day in days:
        runner.world.write_readings(day, usage[day])
    bad = runner.world.home / "readings" / f"reading_date={days[1]}" / "bad.parquet"
    bad.write_bytes(b"PAR1 and then the disk was full")
    result = runner.run(days[0], days[-1])
    assert not result.success
    good = {days[0].isoformat(), days[2].isoformat()}
    for asset in ("sensor_activity", "usage_snapshot", "meter_events", "verification"):
        assert runner.materialized(asset) == good
    assert checks(result)["conservation", days[1].isoformat()] is False
    failure = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    assert "bad.parquet" in str(failure.error)
    del usage[days[1]]
    assert runner.world.billed() == runner.world.due(usage)
    bad.unlink()
    usage[days[1]] = {"a": {"s": 3}}
    assert runner.run(days[1], days[1]).success
    assert runner.world.billed() == runner.world.due(usage)


def test_a_day_that_is_not_over_is_counted_and_not_reported(runner: Runner) -> None:
    today = runner.world.clock().date()
    runner.world.write_readings(today, {"a": {"s": 3}})
    result = runner.run(today, today)
    assert not result.success
    assert runner.materialized("usage_snapshot") == {today.isoformat()}
    assert checks(result)["completeness", today.isoformat()] is False
    assert runner.materialized("meter_events") == set()
    assert runner.world.sandbox.account.events == []


def test_usage_on_hold_turns_the_delivery_check_red(runner: Runner) -> None:
    day = yesterday()
    runner.world.write_readings(day, {"a": {"s": 3}, "stranger": {"x": 2}})
    result = runner.run(day, day)
    assert checks(result)["delivery", day.isoformat()] is False
    assert "stranger" in metadata(result, "meter_events", day)["on_hold"]
    assert runner.world.billed() == runner.world.due({day: {"a": {"s": 3}}})


def test_an_implausible_day_turns_its_check_red_until_a_run_approves_it(runner: Runner) -> None:
    days = [yesterday() - timedelta(days=n) for n in range(8, -1, -1)]
    for day in days[:-1]:
        runner.world.write_readings(day, {"a": {"s": 120}})
    outage = days[-1].isoformat()
    result = runner.run(days[0], days[-1])
    assert {day: checks(result)["plausibility", day.isoformat()] for day in days} == {
        day: day != days[-1] for day in days
    }
    assert runner.world.billed() == runner.world.due({day: {"a": {"s": 120}} for day in days[:-1]})
    approved = runner.run(days[-1], days[-1], approve_gate="the plant was shut")
    assert approved.success
    assert checks(approved)["plausibility", outage] is True
    assert checks(approved)["delivery", outage] is True


def test_a_dry_run_shows_the_plan_and_changes_nothing(runner: Runner) -> None:
    day = yesterday()
    runner.world.write_readings(day, {"a": {"s": 3}})
    assert runner.run(day, day, reason="the first").success
    runner.world.write_readings(day, {"a": {"s": 5}, "b": {"t": 1}})
    snapshot = (runner.world.home / "snapshots" / f"usage_day={day}" / "usage.parquet").read_bytes()
    events = len(runner.world.sandbox.account.events)
    result = runner.run(day, day, dry_run=True)
    assert result.success
    assert result.get_asset_materialization_events() == []
    [observed] = result.get_asset_observation_events()
    message = observed.event_specific_data.asset_observation  # type: ignore[union-attr]
    assert (message.asset_key, message.partition) == (dg.AssetKey("meter_events"), day.isoformat())
    assert message.metadata["cause"].value == "readings.jsonl changed (3 → 6 rows); +3 readings"
    lines = str(message.metadata["plan"].value).splitlines()
    assert any("temperature_readings" in x and "correct" in x and " 5 " in x for x in lines)
    assert len(runner.world.sandbox.account.events) == events
    after = (runner.world.home / "snapshots" / f"usage_day={day}" / "usage.parquet").read_bytes()
    assert after == snapshot
    # A run then reports the present readings.
    assert runner.run(day, day).success
    assert runner.world.billed() == runner.world.due({day: {"a": {"s": 5}, "b": {"t": 1}}})


def test_assets_can_be_materialized_one_by_one(runner: Runner) -> None:
    day = yesterday()
    runner.world.write_readings(day, {"a": {"s": 3}})
    result = runner.run(day, day, ["meter_events"])
    assert not result.success
    assert "materialize usage_snapshot first" in str(runner.billing.outcome.days[day].error)
    assert runner.run(day, day, ["sensor_activity"]).success
    assert runner.materialized("sensor_activity") == {day.isoformat()}
    assert runner.materialized("usage_snapshot") == set()
    assert runner.run(day, day, ["usage_snapshot"]).success
    assert runner.world.sandbox.account.events == []
    assert runner.run(day, day, ["meter_events"]).success
    assert runner.world.billed() == runner.world.due({day: {"a": {"s": 3}}})
    assert runner.run(day, day, ["verification"]).success


def test_without_an_active_meter_a_run_fails_and_its_snapshots_stay(runner: Runner) -> None:
    meter = next(iter(runner.world.sandbox.account.meters))
    runner.world.sandbox.account.change_meter(meter, status="inactive")
    day = yesterday()
    runner.world.write_readings(day, {"a": {"s": 3}})
    result = runner.run(day, day)
    assert not result.success
    assert "inactive" in str(runner.billing.outcome.configuration_error)
    assert runner.materialized("usage_snapshot") == {day.isoformat()}
    assert runner.world.sandbox.account.events == []


def test_counting_needs_no_key(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STRIPE_SECRET_KEY")
    day = yesterday()
    runner.world.write_readings(day, {"a": {"s": 3}})
    assert runner.run(day, day, ["sensor_activity", "usage_snapshot"]).success
    result = runner.run(day, day)
    assert not result.success
    assert "STRIPE_SECRET_KEY" in str(runner.billing.outcome.configuration_error)
