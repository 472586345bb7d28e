"""The `billing` command: its answers for machines, its exit codes, its errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from billing_pipeline.cli.app import main
from billing_pipeline.ledger import queries
from billing_pipeline.sandbox.faults import Faults
from tests.support import KEY, World, yesterday

Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def billing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Run `billing … --json` in this process; returns the exit code and the parsed document."""
    (tmp_path / "dagster-home").mkdir()
    (tmp_path / "dagster-home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster-home"))

    def run(*arguments: str, as_json: bool = True) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["billing", *arguments, *(["--json"] if as_json else [])])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert KEY not in printed.out + printed.err
        code = stopped.value.code
        assert isinstance(code, int)
        return code, json.loads(printed.out) if as_json else printed.out + printed.err

    return run


def span(days: int = 1) -> list[str]:
    return ["--from", str(yesterday() - timedelta(days=days - 1)), "--to", str(yesterday())]


@pytest.fixture
def furnished(world: World) -> World:
    world.make_meters()
    world.make_customers(["a", "b"])
    world.write_readings(yesterday(), {"a": {"s": 3}, "b": {"t": 1}})
    return world


def test_run_answers_with_days_events_sent_verified_mismatched_and_held(
    furnished: World, billing: Command
) -> None:
    code, document = billing("run", *span(2))
    assert code == 0
    (first, second) = document["days"]
    assert first["folder_exists"] is False
    assert first["rows_read"] == 0
    assert {k: second[k] for k in ("rows_read", "readings", "duplicates", "quarantined")} == {
        "rows_read": 4,
        "readings": 4,
        "duplicates": 0,
        "quarantined": 0,
    }
    assert document["sent"] == 6  # two zeros on `last` for the day without a folder
    assert document["verified"] == 6
    assert document["mismatched"] == 0
    assert document["held"] == []
    assert document["events"]["verified"] == 6
    code, document = billing("run", *span(2))
    assert (code, document["sent"], document["verified"]) == (0, 0, 6)


def test_held_usage_is_exit_code_one_with_its_reason(furnished: World, billing: Command) -> None:
    furnished.write_readings(yesterday(), {"stranger": {"x": 2}}, "more.jsonl")
    code, document = billing("run", *span())
    assert code == 1
    assert {
        (h["organization_id"], h["meter"], h["value"], h["reason"]) for h in document["held"]
    } == {
        ("stranger", "active_sensors", 1, "no_customer"),
        ("stranger", "temperature_readings", 2, "no_customer"),
    }
    assert document["sent"] == 4


def test_a_bad_file_is_exit_code_one_and_other_days_are_done(
    furnished: World, billing: Command
) -> None:
    bad = furnished.home / "readings" / f"reading_date={yesterday() - timedelta(days=1)}"
    bad.mkdir(parents=True)
    (bad / "half.parquet").write_bytes(b"PAR1")
    code, document = billing("run", *span(2))
    assert code == 1
    assert "half.parquet" in document["days"][0]["error"]
    assert document["days"][1]["error"] is None
    assert document["verified"] == 4


def test_quarantine_is_counted_and_changes_no_exit_code(furnished: World, billing: Command) -> None:
    folder = furnished.home / "readings" / f"reading_date={yesterday()}"
    (folder / "bad.csv").write_text("organization_id,sensor_id,recorded_at\n,s,\na,,\n")
    code, document = billing("run", *span())
    assert code == 0
    assert document["days"][0]["quarantined"] == 2
    assert document["days"][0]["quarantined_by_reason"] == {
        "organization_id_missing": 1,
        "sensor_id_missing": 1,
    }


def test_a_dry_run_counts_plans_and_writes_nothing(furnished: World, billing: Command) -> None:
    code, document = billing("run", *span(), "--dry-run")
    assert code == 0
    assert {(p["organization_id"], p["meter"], p["value"]) for p in document["plan"]} == {
        ("a", "active_sensors", 1),
        ("a", "temperature_readings", 3),
        ("b", "active_sensors", 1),
        ("b", "temperature_readings", 1),
    }
    assert furnished.sandbox.account.events == []
    assert not (furnished.home / "snapshots").exists()
    assert sum(furnished.context().ledger.read(queries.counts, [yesterday()]).values()) == 0


def test_plan_uses_the_snapshots_there_are(furnished: World, billing: Command) -> None:
    code, document = billing("plan", *span())
    assert code == 1
    assert document["days_without_snapshot"] == [str(yesterday())]
    billing("run", *span())
    code, document = billing("plan", *span())
    assert (code, document["plan"], document["days_without_snapshot"]) == (0, [], [])
    cause = document["causes"][str(yesterday())]["text"]
    assert cause == "its readings have not changed since it was last planned"


def test_verify_finds_what_was_dropped(furnished: World, billing: Command) -> None:
    furnished.sandbox.faults = Faults.parse("lag=0")
    billing("run", *span())
    code, document = billing("verify", *span())
    assert (code, document["compared"], document["verified"]) == (0, 4, 4)
    for event in furnished.sandbox.account.events:
        event.counted = False
    code, document = billing("verify", *span())
    assert (code, document["mismatched"]) == (1, 4)


def test_explain_leads_from_stripes_figure_to_the_files(furnished: World, billing: Command) -> None:
    billing("run", *span())
    code, document = billing(
        "explain",
        "--organization",
        "a",
        "--day",
        str(yesterday()),
        "--meter",
        "temperature_readings",
    )
    assert code == 0
    (meter,) = document["meters"]
    (event,) = meter["events"]
    assert (event["value"], event["state"], event["revision"]) == (3, "verified", 1)
    assert event["request_id"].startswith("req_")
    assert meter["verifications"][0]["reported"] == "3"
    assert event["snapshot_id"] == document["snapshot"]["snapshot_id"]
    assert [f["name"] for f in document["snapshot"]["files"]] == ["readings.jsonl"]
    assert [(s["sensor_id"], s["readings"]) for s in document["sensors"]] == [("s", 3)]
    code, text = billing("explain", "--organization", "a", "--day", str(yesterday()), as_json=False)
    assert code == 0
    assert "readings.jsonl" in text


def test_a_period_is_explained_reconciled_and_written_as_a_page(
    furnished: World, billing: Command, tmp_path: Path
) -> None:
    billing("run", *span())
    month = f"{yesterday():%Y-%m}"
    page = tmp_path / "page.html"
    code, document = billing(
        "explain", "--organization", "a", "--period", month, "--html", str(page)
    )
    assert (code, document["page"]) == (0, str(page))
    [line] = [one for one in document["lines"] if one["meter"] == "temperature_readings"]
    assert line["ledger"] == line["stripe"] == sum(segment["ledger"] for segment in line["parts"])
    assert "<html" in page.read_text()
    code, printed = billing("explain", "--organization", "a", "--period", month, as_json=False)
    assert code == 0
    assert "0 broken" in printed
    code, document = billing("reconcile", "--month", month)
    assert (code, document["right"], document["verified"]["share"]) == (0, True, 1.0)
    assert {row["organization_id"] for row in document["rows"]} == {"a", "b"}
    code, printed = billing("reconcile", "--month", month, as_json=False)
    assert code == 0
    assert "100.0%" in printed
    # Somebody else sends to the meter: no cause is known, and the command says so by its code.
    event = next(e for e in furnished.sandbox.account.events if e.value == 3)
    event.value = 5
    code, document = billing("reconcile", "--month", month)
    assert (code, document["right"]) == (1, False)


def test_without_a_key_the_error_names_it_and_what_still_works(
    furnished: World, billing: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRIPE_SECRET_KEY")
    code, document = billing("run", *span())
    assert code == 2
    assert "STRIPE_SECRET_KEY" in document["error"]
    assert "--dry-run" in document["error"]
    code, text = billing("run", *span(), as_json=False)
    assert code == 2
    assert "STRIPE_SECRET_KEY" in text
    assert billing("run", *span(), "--dry-run")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--from", "2026-13-01", "--to", "2026-01-02"],
        ["run", "--from", "20260101", "--to", "2026-01-02"],
        ["run", "--from", "2026-02-02", "--to", "2026-02-01"],
        ["run", "--from", "2024-12-31", "--to", "2025-01-01"],
        ["run", "--from", "2026-01-01", "--to", "2999-01-01"],
        ["run", "--from", "2026-01-01"],
        ["explain", "--organization", "a", "--day", "2026-01-01", "--meter", "none"],
        ["explain", "--organization", "a"],
        ["explain", "--organization", "a", "--day", "2026-01-01", "--period", "2026-01"],
        ["reconcile", "--month", "2026-1"],
        ["reconcile", "--month", "2999-01"],
        ["nonsense"],
    ],
)
def test_wrong_use_is_exit_code_two(world: World, billing: Command, arguments: list[str]) -> None:
    code, text = billing(*arguments, as_json=False)
    assert code == 2
    assert text
    code, document = billing(*arguments)
    assert code == 2
    assert document["error"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_SECRET_KEY", "pk_test_publishable"),
        ("STRIPE_API_BASE", "ftp://x"),
        ("BILLING_MEMORY_LIMIT", "lots"),
        ("BILLING_ACTIVE_WINDOW_DAYS", "0"),
        ("BILLING_START_DAY", "soon"),
        ("BILLING_DATABASE_URL", "mysql://root:geheim@x/y"),
        ("BILLING_CUSTOMERS_FILE", "/none.csv"),
        ("BILLING_METERS", '[{"event_name": "m", "formula": "max", "measure": "x"}]'),
        ("BILLING_METERS", "active_sensors"),
        ("BILLING_DATABASE_URL", "sqlite:////proc/none/x.db"),
        ("BILLING_DATABASE_URL", "sqlite:////etc/hostname"),
        ("DAGSTER_HOME", "/none"),
    ],
)
def test_wrong_configuration_is_exit_code_two_and_named_without_its_secret(
    furnished: World, billing: Command, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    code, document = billing("run", *span())
    assert code == 2
    assert name in document["error"] or value.removeprefix("sqlite:///") in document["error"]
    assert "geheim" not in document["error"]
    assert "publishable_" not in document["error"]
    assert furnished.sandbox.account.events == []


def test_a_meter_with_another_formula_is_refused_before_anything_is_sent(
    world: World, billing: Command
) -> None:
    world.make_meter("active_sensors", "sum")
    world.make_meter("temperature_readings", "sum")
    world.make_customers(["a"])
    world.write_readings(yesterday(), {"a": {"s": 1}})
    code, document = billing("run", *span())
    assert code == 2
    assert "active_sensors has the formula sum" in document["error"]
    assert world.sandbox.account.events == []


def test_stripe_unreachable_is_exit_code_one_and_everything_stays_planned(
    furnished: World, billing: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", "http://127.0.0.1:9")
    code, document = billing("run", *span())
    assert code == 1
    assert document["events"]["planned"] == 4
    assert document["sent"] == 0
    assert "cannot be reached" in document["stopped"]
    monkeypatch.setenv("STRIPE_API_BASE", furnished.base)
    code, document = billing("run", *span())
    assert (code, document["sent"], document["verified"]) == (0, 4, 4)


def test_days_older_than_34_days_get_their_snapshot_and_are_held(
    furnished: World, billing: Command
) -> None:
    old = yesterday() - timedelta(days=40)
    furnished.write_readings(old, {"a": {"s": 2}})
    code, document = billing("run", "--from", str(old), "--to", str(old))
    assert code == 1
    assert document["days"][0]["readings"] == 2
    assert {h["reason"] for h in document["held"]} == {"too_old"}
    assert (furnished.home / "snapshots" / f"usage_day={old}" / "usage.parquet").exists()


def test_today_is_counted_and_not_stated(furnished: World, billing: Command) -> None:
    today = str(furnished.clock().date())
    furnished.write_readings(furnished.clock().date(), {"a": {"s": 2}})
    code, document = billing("run", "--from", str(yesterday()), "--to", today)
    assert code == 1
    assert [day["readings"] for day in document["days"]] == [4, 2]
    assert "not over yet" in document["days"][1]["error"]
    assert document["sent"] == 4


def test_ids_that_look_like_markup_are_printed_as_they_are(
    furnished: World, billing: Command
) -> None:
    odd = "[/red] [bold]org[/bold]"
    furnished.write_readings(yesterday(), {odd: {"[x]": 2}}, "odd.jsonl")
    for arguments in (
        ["run", *span()],
        ["plan", *span()],
        ["explain", "--organization", odd, "--day", str(yesterday())],
    ):
        _, text = billing(*arguments, as_json=False)
        assert "[/red]" in text


def test_meters_cannot_be_listed_while_stripe_is_away(
    furnished: World, billing: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", "http://127.0.0.1:9")
    code, document = billing("meters", "list")
    assert code == 1
    assert "cannot be reached" in document["error"]


def test_customers_are_imported_listed_and_say_which_days_to_run(
    furnished: World, billing: Command
) -> None:
    furnished.write_readings(yesterday(), {"new": {"x": 2}}, "more.jsonl")
    billing("run", *span())
    file = furnished.home / "more.csv"
    file.write_text("organization_id,stripe_customer_id\nnew,cus_new\nbad,\n")
    code, document = billing("customers", "import", str(file))
    assert code == 1  # the line without a customer needs a person
    assert (document["added"], len(document["problems"])) == (1, 1)
    assert document["days_to_run"] == [str(yesterday())]
    _, listed = billing("customers", "list")
    customers = {c["organization_id"]: c["stripe_customer_id"] for c in listed["customers"]}
    assert customers["new"] == "cus_new"


def test_meters_are_made_and_listed(world: World, billing: Command) -> None:
    code, document = billing("meters", "list")
    assert code == 2
    assert "billing meters ensure" in document["error"]
    code, document = billing("meters", "ensure")
    assert code == 0
    assert document["made"] == ["active_sensors", "temperature_readings"]
    code, document = billing("meters", "list")
    assert [m["formula"] for m in document["meters"]] == ["last", "sum"]


def test_doctor_shows_everything_resolved_and_masks_secrets(
    furnished: World, billing: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_geheim1, whsec_geheim2")
    code, document = billing("doctor")
    assert code == 0
    assert all(check["ok"] for check in document["checks"])
    shown = document["settings"]
    assert shown["STRIPE_SECRET_KEY"].startswith("sk_test_")
    assert shown["STRIPE_METER_EVENTS_BASE"] == furnished.base
    assert "geheim" not in json.dumps(document)
    assert {"BILLING_DATABASE_URL", "BILLING_MEMORY_LIMIT", "BILLING_START_DAY"} <= shown.keys()
    monkeypatch.delenv("STRIPE_SECRET_KEY")
    code, document = billing("doctor")
    assert code == 2


def test_the_sample_is_loaded_where_the_readings_lie(world: World, billing: Command) -> None:
    code, document = billing("sandbox", "load-sample")
    assert code == 0
    assert (document["days"], document["rows"]) == (73, 35_717)
    assert document["last_day"] == str(yesterday())
    assert (world.home / "readings" / f"reading_date={yesterday()}").exists()


def test_every_command_takes_json(billing: Command) -> None:
    import click
    import typer.main

    from billing_pipeline.cli.app import app

    def commands(group: Any) -> Any:
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    found = list(commands(typer.main.get_command(app)))
    assert len(found) >= 13
    assert click
    for command in found:
        assert any("--json" in parameter.opts for parameter in command.params), command.name


def test_an_implausible_day_waits_until_it_is_approved(world: World, billing: Command) -> None:
    world.make_meters()
    world.make_customers(["a"])
    days = [yesterday() - timedelta(days=n) for n in range(8)]
    for day in days[1:]:
        world.write_readings(day, {"a": {"s": 120}})
    code, document = billing("run", *span(8))
    assert code == 1
    assert {h["reason"] for h in document["held"]} == {"gate_closed"}
    assert document["gates"][0]["text"].startswith("0 readings where 120 are usual")
    assert billing("gate", "list")[1]["gates"][0]["day"] == str(yesterday())
    assert billing("gate", "approve", "--day", str(yesterday()), "--reason", " ")[0] == 2
    code, document = billing("gate", "approve", "--day", str(yesterday()), "--reason", "shut")
    assert (code, document["reason"]) == (0, "shut")
    code, document = billing("run", *span(8))
    assert (code, document["sent"], document["held"]) == (0, 1, [])
    assert billing("gate", "list") == (0, {"gates": []})
    assert billing("gate", "approve", "--day", str(yesterday()), "--reason", "again")[0] == 2


def test_usage_that_is_too_old_is_carried_or_written_off(world: World, billing: Command) -> None:
    world.make_meters()
    world.make_customers(["a"])
    old = yesterday() - timedelta(days=39)
    world.write_readings(old, {"a": {"s": 4}})
    world.write_readings(yesterday(), {"a": {"s": 2}})
    assert billing("run", *span(1))[0] == 0
    assert billing("run", "--from", str(old), "--to", str(old))[0] == 1
    code, document = billing("adjustments", "list")
    waiting = {row["meter"]: row for row in document["open"]}
    assert code == 1
    assert {name: row["amount"] for name, row in waiting.items()} == {
        "temperature_readings": 4, "active_sensors": 1,
    }  # fmt: skip
    total, last = waiting["temperature_readings"]["id"], waiting["active_sensors"]["id"]
    assert billing("adjustments", "show", total)[1]["amount"] == 4
    assert billing("adjustments", "approve", last, "--reason", "why")[0] == 2
    assert billing("adjustments", "approve", "adj-none", "--reason", "why")[0] == 2
    code, document = billing("adjustments", "approve", total, "--reason", "found on a disk")
    assert (code, document["decided"][0]["reported_in"]) == (
        0, [{"day": str(yesterday()), "amount": 4}],
    )  # fmt: skip
    assert billing("adjustments", "dismiss", last, "--reason", "the month is billed")[0] == 0
    code, document = billing("run", *span(1))
    assert (code, document["sent"]) == (0, 1)
    customer = world.customers["a"]
    assert world.billed() == {
        (customer, "temperature_readings", yesterday()): 6,
        (customer, "active_sensors", yesterday()): 1,
    }
    code, document = billing("adjustments", "list")
    assert (code, document["open"]) == (0, [])
    assert {row["decision"] for row in document["decided"]} == {"approved", "dismissed"}
    shown = billing("adjustments", "show", total)[1]
    assert [event["value"] for event in shown["events"]] == [2, 4]
    assert billing("adjustments", "list", as_json=False)[0] == 0


def test_a_run_says_who_and_why_and_can_be_undone(furnished: World, billing: Command) -> None:
    code, document = billing("run", *span(1), "--reason", "the monthly backfill")
    assert code == 0
    story = billing("explain", "--organization", "a", "--day", str(yesterday()))[1]
    events = [event for meter in story["meters"] for event in meter["events"]]
    assert {event["reason"] for event in events} == {"the monthly backfill"}
    assert all(event["who"] for event in events)
    assert {event["planned_by"] for event in events} == {document["run_id"]}
    furnished.write_readings(yesterday(), {"a": {"s": 3, "late": 2}, "b": {"t": 1}}, "late.jsonl")
    code, plan = billing("run", *span(1), "--dry-run")
    [line] = [x for x in plan["plan"] if x["meter"] == "temperature_readings"]
    assert (line["before"], line["target"], line["difference"], line["value"]) == (3, 5, 2, 2)
    assert plan["causes"][str(yesterday())]["files"] == [
        {"name": "late.jsonl", "change": "new", "rows_before": 0, "rows": 6}
    ]
    assert line["cause"] == (
        "late.jsonl new (0 → 6 rows); +2 readings; +4 duplicates removed"
    )  # fmt: skip
    second = billing("run", *span(1))[1]["run_id"]
    assert billing("undo", "--run", "nobody", "--reason", "why")[0] == 2
    code, document = billing("undo", "--run", second, "--reason", "too early", "--dry-run")
    assert (code, document["sent"], len(document["reported"])) == (0, 0, 2)
    code, document = billing("undo", "--run", second, "--reason", "too early")
    assert (code, document["sent"], document["left"]) == (0, 2, [])
    assert furnished.billed() == furnished.due({yesterday(): {"a": {"s": 3}, "b": {"t": 1}}})
    printed = billing("undo", "--run", second, "--reason", "again", as_json=False)
    assert printed[0] == 0
    assert "Nothing of" in printed[1]
