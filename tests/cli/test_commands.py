"""The other commands of `billing`: what they answer, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from billing_pipeline.cli.app import app
from tests.cli.conftest import Billing, last_days
from tests.support import World, yesterday


def test_every_command_has_json_and_help() -> None:
    def commands(group: Any) -> Iterator[Any]:
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    found = list(commands(typer.main.get_command(app)))
    assert len(found) >= 13
    for command in found:
        assert any("--json" in parameter.opts for parameter in command.params), command.name
        assert command.help, command.name


def test_help_does_not_wait_for_slow_imports() -> None:
    slow = "{'dagster', 'duckdb', 'sqlalchemy', 'stripe'}"
    code = f"import sys, billing_pipeline.cli.app; print({slow} & sys.modules.keys() or 'none')"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "none"


def test_explain_leads_from_stripes_figure_to_the_files(ready: World, billing: Billing) -> None:
    billing("run", *last_days())
    explain = ["explain", "--organization", "a", "--day", yesterday()]
    document = billing(*explain, "--meter", "temperature_readings")
    [meter] = document["meters"]
    [event] = meter["events"]
    assert (event["value"], event["state"], event["revision"]) == (3, "verified", 1)
    assert event["request_id"].startswith("req_")
    assert meter["verifications"][0]["reported"] == "3"
    assert event["snapshot_id"] == document["snapshot"]["snapshot_id"]
    assert [f["name"] for f in document["snapshot"]["files"]] == ["readings.jsonl"]
    assert [(s["sensor_id"], s["readings"]) for s in document["sensors"]] == [("s", 3)]
    assert "readings.jsonl" in billing.text(*explain)


def test_a_period_is_explained_reconciled_and_written_as_a_page(
    ready: World, billing: Billing, tmp_path: Path
) -> None:
    billing("run", *last_days())
    month, page = f"{yesterday():%Y-%m}", tmp_path / "page.html"
    explain = ["explain", "--organization", "a", "--period", month]
    document = billing(*explain, "--html", page)
    assert document["page"] == str(page)
    [line] = [each for each in document["lines"] if each["meter"] == "temperature_readings"]
    assert line["ledger"] == line["stripe"] == sum(day["ledger"] for day in line["days"])
    assert "<html" in page.read_text()
    assert "0 are broken" in billing.text(*explain)
    document = billing("reconcile", "--month", month)
    assert (document["right"], document["verified"]["share"]) == (True, 1.0)
    assert {row["organization_id"] for row in document["rows"]} == {"a", "b"}
    assert "100.0%" in billing.text("reconcile", "--month", month)
    # Another sender uses the meter: no cause is known.
    event = next(e for e in ready.sandbox.account.events if e.value == 3)
    event.value = 5
    assert billing("reconcile", "--month", month, code=1)["right"] is False
    assert "no known cause" in billing.text("reconcile", "--month", month, code=1)


def test_ids_that_look_like_markup_are_printed_as_they_are(ready: World, billing: Billing) -> None:
    odd = "[/red] [bold]org[/bold]"
    ready.write_readings(yesterday(), {odd: {"[x]": 2}}, "odd.jsonl")
    for command in (["run", *last_days()], ["plan", *last_days()]):
        assert "[/red]" in billing.text(*command, code=1)
    assert "[/red]" in billing.text("explain", "--organization", odd, "--day", yesterday())


def test_imported_customers_are_listed_with_the_days_to_run(ready: World, billing: Billing) -> None:
    ready.write_readings(yesterday(), {"new": {"x": 2}}, "more.jsonl")
    billing("run", *last_days(), code=1)
    file = ready.home / "more.csv"
    file.write_text("organization_id,stripe_customer_id\nnew,cus_new\nbad,\n")
    document = billing("customers", "import", file, code=1)  # a line has no customer
    assert (document["added"], len(document["problems"])) == (1, 1)
    assert document["days_to_run"] == [str(yesterday())]
    assert f"--from {yesterday()} --to" in billing.text("customers", "import", file, code=1)
    customers = billing("customers", "list")["customers"]
    assert {"new": "cus_new"}.items() <= {
        each["organization_id"]: each["stripe_customer_id"] for each in customers
    }.items()
    assert "cus_new" in billing.text("customers", "list")


def test_meters_are_created_and_listed(world: World, billing: Billing) -> None:
    assert "billing meters ensure" in billing("meters", "list", code=2)["error"]
    assert billing("meters", "ensure")["made"] == ["active_sensors", "temperature_readings"]
    assert [m["formula"] for m in billing("meters", "list")["meters"]] == ["last", "sum"]
    assert "test mode" in billing.text("meters", "list")


def test_stored_events_are_listed_shown_and_replayed(ready: World, billing: Billing) -> None:
    ready.make_subscription(ready.customers["a"])
    stored = ready.receive()
    assert billing("events", "list")["counts"]["received"] == len(stored)
    document = billing("events", "replay", "--state", "failed")
    assert (document["replayed"], len(document["ignored"] + document["processed"])) == (
        [], len(stored),
    )  # fmt: skip
    assert billing("events", "replay", stored[0])["replayed"] == [stored[0]]
    assert billing("events", "replay", "evt_none", code=1)["unknown"] == ["evt_none"]
    assert billing("events", "show", stored[0])["id"] == stored[0]
    assert stored[0] in billing.text("events", "list")
    assert "no such event" in billing.text("events", "replay", "evt_none", code=1)


def test_doctor_shows_the_configuration_without_secrets(
    ready: World, billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_geheim1, whsec_geheim2")
    document = billing("doctor")
    assert all(check["ok"] for check in document["checks"])
    shown = document["settings"]
    assert shown["STRIPE_SECRET_KEY"].startswith("sk_test_")
    assert shown["STRIPE_METER_EVENTS_BASE"] == ready.base
    assert "geheim" not in json.dumps(document) + billing.text("doctor")
    assert {"BILLING_DATABASE_URL", "BILLING_MEMORY_LIMIT", "BILLING_START_DAY"} <= shown.keys()
    monkeypatch.delenv("STRIPE_SECRET_KEY")
    billing("doctor", code=2)


def test_the_sample_is_written_where_readings_are_expected(world: World, billing: Billing) -> None:
    document = billing("sandbox", "load-sample")
    assert (document["days"], document["rows"]) == (73, 35_717)
    assert document["last_day"] == str(yesterday())
    assert (world.home / "readings" / f"reading_date={yesterday()}").exists()


# Refusals ------------------------------------------------------------------------------------


def test_without_a_key_the_error_names_it_and_what_still_works(
    ready: World, billing: Billing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRIPE_SECRET_KEY")
    error = billing("run", *last_days(), code=2)["error"]
    assert "STRIPE_SECRET_KEY" in error
    assert "--dry-run" in error
    assert "STRIPE_SECRET_KEY" in billing.text("run", *last_days(), code=2)
    billing("run", *last_days(), "--dry-run")


@pytest.mark.parametrize(
    "arguments",
    [
        "run --from 2026-13-01 --to 2026-01-02",
        "run --from 20260101 --to 2026-01-02",
        "run --from 2026-02-02 --to 2026-02-01",
        "run --from 2024-12-31 --to 2025-01-01",
        "run --from 2026-01-01 --to 2999-01-01",
        "run --from 2026-01-01",
        "explain --organization a --day 2026-01-01 --meter none",
        "explain --organization a",
        "explain --organization a --day 2026-01-01 --period 2026-01",
        "reconcile --month 2026-1",
        "reconcile --month 2999-01",
        "events list --state none",
        "nonsense",
    ],
)
def test_wrong_use_is_exit_code_two(world: World, billing: Billing, arguments: str) -> None:
    assert billing.text(*arguments.split(), code=2)
    assert billing(*arguments.split(), code=2)["error"]


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
def test_wrong_configuration_is_named_without_its_secret(
    ready: World, billing: Billing, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    error = billing("run", *last_days(), code=2)["error"]
    assert name in error or value.removeprefix("sqlite:///") in error
    assert "geheim" not in error
    assert "publishable_" not in error
    assert ready.sandbox.account.events == []


def test_a_meter_with_another_formula_is_refused_before_anything_is_sent(
    world: World, billing: Billing
) -> None:
    world.make_meter("active_sensors", "sum")
    world.make_meter("temperature_readings", "sum")
    world.make_customers(["a"])
    world.write_readings(yesterday(), {"a": {"s": 1}})
    error = billing("run", *last_days(), code=2)["error"]
    assert "active_sensors has the formula sum" in error
    assert world.sandbox.account.events == []
