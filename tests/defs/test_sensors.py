"""What starts runs: the schedule, and the two sensors, one situation of their cursor a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from billing_pipeline.defs import Billing
from billing_pipeline.defs.schedules import bill_yesterday
from billing_pipeline.defs.sensors import changed_readings, unfinished_usage
from billing_pipeline.ledger.days import planned_from
from billing_pipeline.rules.timestamps import day_start
from tests.support import World, yesterday

START, END = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
Tick = Callable[[dg.SensorDefinition, str | None], tuple[list[tuple[str, str]], str]]


@pytest.fixture
def tick(world: World) -> Iterator[Tick]:
    with dg.DagsterInstance.ephemeral() as instance:

        def run(
            sensor: dg.SensorDefinition, cursor: str | None
        ) -> tuple[list[tuple[str, str]], str]:
            context = dg.build_sensor_context(
                instance=instance, cursor=cursor, resources={"billing": Billing(world.clock)}
            )
            result: Any = sensor(context)
            assert all(request.run_key is None for request in result.run_requests)
            ranges = [(r.tags[START], r.tags[END]) for r in result.run_requests]
            return ranges, result.cursor

        yield run


@pytest.fixture
def counted(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Three finished days, all of them billed."""
    first = yesterday() - timedelta(days=2)
    monkeypatch.setenv("BILLING_START_DAY", first.isoformat())
    # Six in the morning: past the grace of a day that has just ended, far from the next one.
    six = day_start(yesterday()) + 30 * 3600
    world.advance(seconds=six - world.clock().timestamp())
    world.make_meters()
    world.make_customers(["a"])
    for n in range(3):
        world.write_readings(first + timedelta(days=n), {"a": {"s": 2}})
    world.bill([first + timedelta(days=n) for n in range(3)])
    return world


def test_unchanged_days_need_no_run(counted: World, tick: Tick) -> None:
    assert tick(changed_readings, None)[0] == []
    assert tick(unfinished_usage, None)[0] == []


def test_changed_days_are_asked_for_once_in_unbroken_ranges(counted: World, tick: Tick) -> None:
    first, last = yesterday() - timedelta(days=2), yesterday()
    for day in (first, last):
        counted.write_readings(day, {"a": {"late": 1}}, "late.jsonl")
    ranges, cursor = tick(changed_readings, None)
    assert ranges == [(first.isoformat(), first.isoformat()), (last.isoformat(), last.isoformat())]
    assert tick(changed_readings, cursor)[0] == []


def test_a_day_that_changes_again_is_asked_for_again(counted: World, tick: Tick) -> None:
    counted.write_readings(yesterday(), {"a": {"late": 1}}, "late.jsonl")
    _, cursor = tick(changed_readings, None)
    counted.write_readings(yesterday(), {"a": {"later": 1}}, "later.jsonl")
    assert len(tick(changed_readings, cursor)[0]) == 1


def test_a_day_whose_run_never_succeeded_is_asked_for_again_after_an_hour(
    counted: World, tick: Tick
) -> None:
    counted.write_readings(yesterday(), {"a": {"late": 1}}, "late.jsonl")
    _, cursor = tick(changed_readings, None)
    counted.advance(minutes=59)
    assert tick(changed_readings, cursor)[0] == []
    counted.advance(minutes=2)
    assert len(tick(changed_readings, cursor)[0]) == 1


def test_a_file_for_a_day_that_is_too_old_is_noticed_in_its_turn(
    counted: World, tick: Tick
) -> None:
    day = yesterday()
    counted.advance(days=60)
    counted.write_readings(day, {"a": {"late": 1}}, "late.jsonl")

    def older(cursor: str | None) -> tuple[list[tuple[str, str]], str | None]:
        """What a few ticks ask for of the days of two months ago."""
        asked = []
        for _ in range(8):
            ranges, cursor = tick(changed_readings, cursor)
            asked += [span for span in ranges if span[0] <= day.isoformat()]
        return asked, cursor

    asked, cursor = older(None)
    assert asked == [(day.isoformat(), day.isoformat())]
    counted.advance(minutes=61)
    assert older(cursor)[0] == asked  # nobody did it: once more
    counted.bill([day])
    assert counted.hold_reasons(day) == {"too_old"}
    # Files that were archived are no news.
    for file in (counted.home / "readings" / f"reading_date={day}").iterdir():
        file.unlink()
    assert older(None)[0] == []


def test_a_day_that_was_billed_is_forgotten_by_the_cursor(counted: World, tick: Tick) -> None:
    counted.write_readings(yesterday(), {"a": {"late": 1}}, "late.jsonl")
    _, cursor = tick(changed_readings, None)
    counted.bill([yesterday()])
    ranges, cursor = tick(changed_readings, cursor)
    assert (ranges, cursor) == ([], "{}")


def test_days_that_no_run_ever_counted_are_found(
    counted: World, tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = yesterday() - timedelta(days=5)
    monkeypatch.setenv("BILLING_START_DAY", earlier.isoformat())
    ranges, _ = tick(changed_readings, None)
    assert ranges == [(earlier.isoformat(), (yesterday() - timedelta(days=3)).isoformat())]


def test_an_unreadable_day_is_asked_for_so_that_its_run_names_the_file(
    counted: World, tick: Tick
) -> None:
    empty = counted.home / "readings" / f"reading_date={yesterday()}" / "empty.csv"
    empty.write_bytes(b"")
    ranges, cursor = tick(changed_readings, None)
    assert len(ranges) == 1
    assert tick(changed_readings, cursor)[0] == []


def test_today_is_left_to_come(counted: World, tick: Tick) -> None:
    counted.write_readings(counted.clock().date(), {"a": {"s": 1}})
    assert tick(changed_readings, None)[0] == []


def test_usage_on_hold_is_asked_for_when_its_customer_appears(counted: World, tick: Tick) -> None:
    day = yesterday()
    counted.write_readings(day, {"a": {"s": 2}, "new": {"x": 1}})
    counted.bill([day])
    assert tick(unfinished_usage, None)[0] == []
    counted.make_customers(["new"])
    ranges, cursor = tick(unfinished_usage, None)
    # With its customer it owes a zero for the counted days before, too.
    recent = [day - timedelta(days=n) for n in range(40)]
    first = min(counted.context().ledger.read(planned_from, recent))
    assert ranges == [(first.isoformat(), day.isoformat())]
    assert tick(unfinished_usage, cursor)[0] == []


def test_the_daily_schedule_bills_the_day_that_has_just_ended() -> None:
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2026, 3, 1, 0, 10, tzinfo=UTC)
    )
    request: Any = bill_yesterday(context)
    assert request.partition_key == "2026-02-28"
    assert bill_yesterday.cron_schedule == "10 0 * * *"
    assert bill_yesterday.execution_timezone == "UTC"
