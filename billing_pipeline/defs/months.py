"""The reconciliation of a month in Dagster: asset, checks, job and schedule."""

import time
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import dagster as dg

from billing_pipeline.defs import metadata, specs
from billing_pipeline.defs.partitions import billing_months
from billing_pipeline.defs.resources import Billing
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.reconcile.month import keep, reconcile_month

STILL_CLOSING = 7
"""For so many days, the month before is reconciled too: drafts become final within 72 hours, and
late files of its last days are reported meanwhile."""


@dg.multi_asset(
    name="reconcile_month",
    specs=[specs.RECONCILIATION],
    check_specs=[specs.RECONCILED, specs.VERIFIED],
    partitions_def=billing_months,
    pool="reconciliation",
)
def reconciliation(
    context: dg.AssetExecutionContext, billing: dg.ResourceParam[Billing]
) -> Iterator[Any]:
    """Reconcile one month from readings to invoice lines, and keep the result as a file."""
    begun = time.monotonic()
    try:
        with billing.open(context.run.run_id) as ctx:
            month = date.fromisoformat(context.partition_key)
            found = reconcile_month(ctx, month, progress=billing.progress)
            path = keep(ctx, found)
    except ConfigurationError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    red = [row for row in found.rows if not row.is_right]
    facts = metadata.of_reconciliation(found, path, time.monotonic() - begun)
    yield dg.MaterializeResult(
        asset_key=specs.RECONCILIATION.key,
        metadata=facts,
        check_results=[
            dg.AssetCheckResult(
                check_name=specs.RECONCILED.name,
                passed=found.is_right,
                metadata={"without_a_cause": metadata.reconciled_rows(red),
                          "problems": "\n".join(found.problems) or "(none)"},
            ),
            dg.AssetCheckResult(
                check_name=specs.VERIFIED.name,
                passed=found.verified.cells == found.verified.verified,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"verified": found.verified.verified, "cells": found.verified.cells},
            ),
        ],
    )  # fmt: skip


reconcile_months = dg.define_asset_job(
    "reconcile_months",
    selection=dg.AssetSelection.assets("reconciliation"),
    description="Follow a month's figures from readings to invoice lines.",
)


# After the nightly run and the long search for missed webhooks.
@dg.schedule(job=reconcile_months, cron_schedule="30 5 * * *", execution_timezone="UTC")
def reconcile_daily(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """Reconcile the current month, and in its first days the month before."""
    today = context.scheduled_execution_time.date()
    month = today.replace(day=1)
    months = [month]
    if today.day <= STILL_CLOSING:
        months.append((month - timedelta(days=1)).replace(day=1))
    return [
        dg.RunRequest(run_key=f"{each} {today}", partition_key=each.isoformat())
        for each in months
        if each >= billing_months.start.date()
    ]
