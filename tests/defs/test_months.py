"""The reconciliation as a monthly asset: its file, its checks, when it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from billing_pipeline.defs import Billing, build_defs
from billing_pipeline.defs.months import reconcile_daily
from tests.closed_period import CLOSED
from tests.support import SUM, World


def run_month(world: World) -> tuple[dict[str, dg.AssetCheckEvaluation], dict[str, Any]]:
    job = build_defs({"billing": Billing(world.clock)}).resolve_job_def("reconcile_months")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance, partition_key=CLOSED.replace(day=1).isoformat()
        )
        assert result.success
        [event] = result.asset_materializations_for_node("reconcile_month")
        metadata: dict[str, Any] = {name: value.value for name, value in event.metadata.items()}
        return {e.check_name: e for e in result.get_asset_check_evaluations()}, metadata


def test_a_month_that_agrees_is_green_and_shows_its_verified_share(closed: World) -> None:
    checks, metadata = run_month(closed)
    assert {name: check.passed for name, check in checks.items()} == {
        "reconciled": True, "verified": True,
    }  # fmt: skip
    assert metadata["verified_share"] == 1.0
    assert metadata["without_a_cause"] == 0
    assert str(metadata["path"]).endswith(f"month={CLOSED:%Y-%m}/reconciliation.csv")
    assert {"seconds", "hours_until_verified", "cells"} <= metadata.keys()


def test_a_difference_without_a_cause_is_red(closed: World) -> None:
    event = next(e for e in closed.sandbox.account.events if e.event_name == SUM)
    event.cancelled = True
    checks, metadata = run_month(closed)
    assert not checks["reconciled"].passed
    assert metadata["without_a_cause"] != 0


@pytest.mark.parametrize(
    ("at", "months"),
    [
        (datetime(2026, 3, 20, 5, 30, tzinfo=UTC), ["2026-03-01"]),
        (datetime(2026, 3, 2, 5, 30, tzinfo=UTC), ["2026-03-01", "2026-02-01"]),
        (datetime(2025, 1, 3, 5, 30, tzinfo=UTC), ["2025-01-01"]),  # the first month there is
    ],
)
def test_each_night_the_month_is_reconciled_and_in_its_first_days_the_one_before(
    at: datetime, months: list[str]
) -> None:
    context = dg.build_schedule_context(scheduled_execution_time=at)
    requests: Any = reconcile_daily(context)
    assert [request.partition_key for request in requests] == months
