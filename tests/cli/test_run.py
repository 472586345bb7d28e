"""`billing run`, `plan`, `verify` and `undo`, and the decisions that people make about a run."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing_pipeline.ledger import queries
from billing_pipeline.sandbox.faults import Faults
from tests.cli.conftest import Billing, last_days
from tests.support import World, yesterday

SUM, LAST = "temperature_readings", "active_sensors"
NOBODY_LISTENS = "http://127.0.0.1:9"


def test_a_run_answers_with_days_events_and_counts(ready: World, billing: Billing) -> None:
    document = billing("run", *last_days(2))
    (first, second) = document["days"]
    assert first["folder_exists"] is False
    assert first["rows_read"] == 0
    counts = ("rows_read", "readings", "duplicates", "quarantined")
    assert [second[name] for name in counts] == [4, 4, 0, 0]
    assert document["sent"] == 6  # two zeros on `last` for the day without a folder
    assert document["verified"] == document["events"]["verified"] == 6
    assert (document["mismatched"], document["held"]) == (0, [])
    again = billing("run", *last_days(2))
    assert (again["sent"], again["verified"]) == (0, 6)
    text = billing.text("run", *last_days(2))
    assert "no folder, so zero readings" in text
    assert "6 verified. Sent in this run: 0." in text


def test_usage_on_hold_is_listed_with_its_reason(ready: World, billing: Billing) -> None:
    ready.write_readings(yesterday(), {"stranger": {"x": 2}}, "more.jsonl")
    document = billing("run", *last_days(), code=1)
    held = {(h["organization_id"], h["meter"], h["value"], h["reason"]) for h in document["held"]}
    assert held == {("stranger", LAST, 1, "no_customer"), ("stranger", SUM, 2, "no_customer")}
    assert document["sent"] == 4
    assert "Usage on hold (2)" in billing.text("run", *last_days(), code=1)


def test_a_damaged_file_fails_only_its_day(ready: World, billing: Billing) -> None:
    bad = ready.home / "readings" / f"reading_date={yesterday() - timedelta(days=1)}"
    bad.mkdir(parents=True)
    (bad / "half.parquet").write_bytes(b"PAR1")
    document = billing("run", *last_days(2), code=1)
    assert "half.parquet" in document["days"][0]["error"]
    assert document["days"][1]["error"] is None
    assert document["verified"] == 4
    planned = billing("run", *last_days(2), "--dry-run", code=1)
    assert "half.parquet" in planned["days"][0]["error"]
    assert planned["days"][1]["readings"] == 4


def test_days_show_quarantine_and_ignored_files(ready: World, billing: Billing) -> None:
    folder = ready.home / "readings" / f"reading_date={yesterday()}"
    (folder / "bad.csv").write_text("organization_id,sensor_id,recorded_at\n,s,\na,,\n")
    (folder / "_SUCCESS").touch()
    planned = billing("run", *last_days(), "--dry-run")
    preview = billing.text("run", *last_days(), "--dry-run")
    document = billing("run", *last_days())
    [day] = document["days"]
    assert (day["rows_read"], day["quarantined"], day["ignored_files"]) == (6, 2, ["_SUCCESS"])
    assert day["quarantined_by_reason"] == {"organization_id_missing": 1, "sensor_id_missing": 1}
    assert planned["days"] == [{**day, "snapshot_id": None}]
    for text in (preview, billing.text("run", *last_days())):
        assert "quarantined: 1 organization_id_missing, 1 sensor_id_missing" in text
        assert "ignored: _SUCCESS" in text


def test_a_dry_run_counts_and_plans_and_writes_nothing(ready: World, billing: Billing) -> None:
    document = billing("run", *last_days(), "--dry-run")
    assert {(p["organization_id"], p["meter"], p["value"]) for p in document["plan"]} == {
        ("a", LAST, 1), ("a", SUM, 3), ("b", LAST, 1), ("b", SUM, 1),
    }  # fmt: skip
    assert ready.sandbox.account.events == []
    assert not (ready.home / "snapshots").exists()
    assert sum(ready.context().ledger.read(queries.counts, [yesterday()]).values()) == 0


def test_plan_uses_the_snapshots_there_are(ready: World, billing: Billing) -> None:
    document = billing("plan", *last_days(), code=1)
    assert document["days_without_snapshot"] == [str(yesterday())]
    billing("run", *last_days())
    document = billing("plan", *last_days())
    assert (document["plan"], document["days_without_snapshot"]) == ([], [])
    cause = document["causes"][str(yesterday())]["text"]
    assert cause == "its readings have not changed since it was last planned"
    assert "Nothing to send for 1 day:" in billing.text("plan", *last_days())


def test_plan_says_which_days_were_not_counted_after_their_end(
    ready: World, billing: Billing
) -> None:
    today = ready.clock().date()
    billing("run", "--from", today, "--to", today, code=1)  # its snapshot is of a part of the day
    text = billing.text("plan", "--from", today, "--to", today, code=1)
    assert f"{today} is not over yet: plan it once the UTC day has ended." in text
    before = yesterday() - timedelta(days=1)
    for days, which in ((1, f"1 day ({yesterday()})"), (2, f"2 days ({before} to {yesterday()})")):
        text = billing.text("plan", *last_days(days), code=1)
        assert f"No snapshot was taken after the day's end for {which}." in text
        assert "`billing run` counts" in text


def test_today_is_counted_but_not_reported(ready: World, billing: Billing) -> None:
    today = ready.clock().date()
    ready.write_readings(today, {"a": {"s": 2}})
    for dry in ([], ["--dry-run"]):
        document = billing("run", "--from", yesterday(), "--to", today, *dry, code=1)
        assert [day["readings"] for day in document["days"]] == [4, 2]
        assert "not over yet" in document["days"][1]["error"]
        assert document["sent"] == (0 if dry else 4)


def test_verify_finds_lost_events(ready: World, billing: Billing) -> None:
    ready.sandbox.faults = Faults.parse("lag=0")
    billing("run", *last_days())
    document = billing("verify", *last_days())
    assert (document["compared"], document["verified"]) == (4, 4)
    for event in ready.sandbox.account.events:
        event.counted = False
    assert billing("verify", *last_days(), code=1)["mismatched"] == 4
    text = billing.text("verify", *last_days(), code=1)
    assert "Compared 4 figures: 0 agree." in text
    assert "Stripe's summaries differ from the ledger (4)" in text


def test_a_run_is_explained_with_who_and_why_and_can_be_undone(
    ready: World, billing: Billing
) -> None:
    first = billing("run", *last_days(), "--reason", "the monthly backfill")["run_id"]
    story = billing("explain", "--organization", "a", "--day", yesterday())
    events = [event for meter in story["meters"] for event in meter["events"]]
    assert {event["reason"] for event in events} == {"the monthly backfill"}
    assert all(event["who"] for event in events)
    assert {event["planned_by"] for event in events} == {first}
    ready.write_readings(yesterday(), {"a": {"s": 3, "late": 2}, "b": {"t": 1}}, "late.jsonl")
    plan = billing("run", *last_days(), "--dry-run")
    [line] = [x for x in plan["plan"] if x["meter"] == SUM]
    assert (line["before"], line["target"], line["difference"], line["value"]) == (3, 5, 2, 2)
    assert plan["causes"][str(yesterday())]["files"] == [
        {"name": "late.jsonl", "change": "new", "rows_before": 0, "rows": 6}
    ]
    assert line["cause"] == "late.jsonl new (0 → 6 rows); +2 readings; +4 duplicates removed"
    second = billing("run", *last_days())["run_id"]
    billing("undo", "--run", "nobody", "--reason", "why", code=2)
    undo = ["undo", "--run", second, "--reason", "too early"]
    document = billing(*undo, "--dry-run")
    assert (document["sent"], len(document["reported"])) == (0, 2)
    document = billing(*undo)
    assert (document["sent"], document["unchanged"]) == (2, [])
    assert ready.billed() == ready.due({yesterday(): {"a": {"s": 3}, "b": {"t": 1}}})
    assert "is left to undo" in billing.text(*undo)


def test_without_stripe_a_run_stays_planned_and_nothing_is_undone(
    ready: World, billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", NOBODY_LISTENS)
    planned = billing("run", *last_days(), code=1)
    assert (planned["events"]["planned"], planned["sent"]) == (4, 0)
    assert "cannot be reached" in planned["stopped"]
    monkeypatch.setenv("STRIPE_API_BASE", ready.base)
    document = billing("run", *last_days())
    assert (document["sent"], document["verified"]) == (4, 4)
    monkeypatch.setenv("STRIPE_API_BASE", NOBODY_LISTENS)
    undo = ["undo", "--run", planned["run_id"], "--reason", "why"]
    assert "cannot be reached" in billing(*undo, code=1)["error"]
    assert "Stripe cannot be reached: " in billing.text(*undo, code=1)
    assert "cannot be reached" in billing("meters", "list", code=1)["error"]
    assert len(ready.sandbox.account.events) == 4


def test_a_day_older_than_34_days_is_counted_and_on_hold(ready: World, billing: Billing) -> None:
    old = yesterday() - timedelta(days=40)
    ready.write_readings(old, {"a": {"s": 2}})
    document = billing("run", "--from", old, "--to", old, code=1)
    assert document["days"][0]["readings"] == 2
    assert {h["reason"] for h in document["held"]} == {"too_old"}
    assert (ready.home / "snapshots" / f"usage_day={old}" / "usage.parquet").exists()


def test_an_implausible_day_waits_until_it_is_approved(world: World, billing: Billing) -> None:
    world.make_meters()
    world.make_customers(["a"])
    for days in range(1, 8):
        world.write_readings(yesterday() - timedelta(days=days), {"a": {"s": 120}})
    document = billing("run", *last_days(8), code=1)
    assert {h["reason"] for h in document["held"]} == {"gate_closed"}
    assert document["gates"][0]["text"].startswith("0 readings where 120 are usual")
    assert billing("gate", "list", code=1)["gates"][0]["day"] == str(yesterday())
    assert "0 readings where 120 are usual" in billing.text("gate", "list", code=1)
    approve = ["gate", "approve", "--day", yesterday(), "--reason"]
    billing(*approve, " ", code=2)
    assert billing(*approve, "shut")["reason"] == "shut"
    document = billing("run", *last_days(8))
    assert (document["sent"], document["held"]) == (1, [])
    assert billing("gate", "list") == {"gates": []}
    billing(*approve, "again", code=2)


def test_usage_that_is_too_old_is_adjusted_or_written_off(world: World, billing: Billing) -> None:
    world.make_meters()
    world.make_customers(["a"])
    old = yesterday() - timedelta(days=39)
    world.write_readings(old, {"a": {"s": 4}})
    world.write_readings(yesterday(), {"a": {"s": 2}})
    billing("run", *last_days())
    billing("run", "--from", old, "--to", old, code=1)
    waiting = {row["meter"]: row for row in billing("adjustments", "list", code=1)["open"]}
    assert {name: row["amount"] for name, row in waiting.items()} == {SUM: 4, LAST: 1}
    total, last = waiting[SUM]["id"], waiting[LAST]["id"]
    assert total in billing.text("adjustments", "list", code=1)
    assert billing("adjustments", "show", total)["amount"] == 4
    billing("adjustments", "approve", last, "--reason", "why", code=2)
    billing("adjustments", "approve", "adj-none", "--reason", "why", code=2)
    [decided] = billing("adjustments", "approve", total, "--reason", "found on a disk")["decided"]
    assert decided["reported_in"] == [{"day": str(yesterday()), "amount": 4}]
    billing("adjustments", "dismiss", last, "--reason", "the month is billed")
    assert billing("run", *last_days())["sent"] == 1
    customer = world.customers["a"]
    assert world.billed() == {(customer, SUM, yesterday()): 6, (customer, LAST, yesterday()): 1}
    document = billing("adjustments", "list")
    assert document["open"] == []
    assert {row["decision"] for row in document["decided"]} == {"approved", "dismissed"}
    shown = billing("adjustments", "show", total)
    assert [event["value"] for event in shown["events"]] == [2, 4]
    assert f"{yesterday()} +4" in billing.text("adjustments", "list")
