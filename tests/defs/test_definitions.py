"""The graph as a person sees it, loaded as Dagster loads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from billing_pipeline.defs import build_defs
from billing_pipeline.defs.partitions import billing_months, usage_days

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def graph() -> dg.Definitions:
    return build_defs()


def test_the_graph_has_these_assets_checks_jobs_schedules_and_sensors(
    graph: dg.Definitions,
) -> None:
    repository = graph.get_repository_def()
    specs = {spec.key.to_user_string(): spec for spec in graph.resolve_all_asset_specs()}
    upstream = {
        name: sorted(dep.asset_key.to_user_string() for dep in spec.deps)
        for name, spec in specs.items()
    }
    assert upstream == {
        "readings": [],
        "sensor_activity": ["readings"],
        "usage_snapshot": ["sensor_activity"],
        "meter_events": ["usage_snapshot"],
        "verification": ["meter_events"],
        "stripe_events": [],
        "subscriptions": ["stripe_events"],
        "reconciliation": ["verification"],
    }
    checks = {key.name for key in repository.asset_graph.asset_check_keys}
    assert checks == {
        "conservation", "completeness", "plausibility", "delivery", "agreement",
        "events_applied", "meter_errors", "unbilled", "contradictions", "reconciled",
        "verified",
    }  # fmt: skip
    assert {job.name for job in repository.get_all_jobs()} >= {
        "bill_days", "report_days", "apply_stripe_events", "missed_stripe_events",
        "reconcile_months",
    }  # fmt: skip
    assert {s.name for s in repository.schedule_defs} == {
        "bill_yesterday", "missed_webhooks", "reconcile_daily",
    }  # fmt: skip
    assert {s.name for s in repository.sensor_defs} == {
        "changed_readings", "unfinished_usage", "stripe_event_sensor", "closing_periods",
        "alert_sensor", "failed_runs",
    }  # fmt: skip


def test_every_asset_has_a_description_an_owner_and_columns(graph: dg.Definitions) -> None:
    for spec in graph.resolve_all_asset_specs():
        assert spec.description
        assert spec.description.startswith("One row per ")
        assert spec.group_name in {"readings", "usage", "stripe"}
        assert spec.owners == ["team:billing"]
        assert spec.kinds
        schema = spec.metadata["dagster/column_schema"]
        assert len(schema.columns) >= 4
        message = spec.description.lower()
        partitions = (
            usage_days if "day" in message else billing_months if "month" in message else None
        )
        assert spec.partitions_def == partitions


def test_the_money_checks_block(graph: dg.Definitions) -> None:
    (definition,) = (
        asset
        for asset in graph.assets or ()
        if isinstance(asset, dg.AssetsDefinition) and len(asset.keys) > 1
    )
    blocking = {spec.name: spec.blocking for spec in definition.check_specs}
    assert blocking == {
        "conservation": True,
        "completeness": True,
        "plausibility": False,
        "delivery": False,
        "agreement": False,
    }


def test_a_fresh_interpreter_loads_the_workspace_without_any_key() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("STRIPE", "BILLING"))}
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    module = workspace["load_from"][0]["python_module"]["module_name"]
    code = f"import {module} as m; print(len(list(m.defs.resolve_all_asset_specs())))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8"
    assert "Warning" not in done.stderr


def test_dagster_itself_validates_the_workspace(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_instance_of_the_repository_is_valid_and_sends_no_telemetry(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert not instance.run_retries_enabled or not instance.run_retries_max_retries > 2
