"""A run of the billing job in this process, against the configured Dagster instance."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path

import dagster as dg

from billing_pipeline.defs.build import build_defs
from billing_pipeline.defs.resources import Billing, RunOutcome
from billing_pipeline.statement import Progress


def instance() -> AbstractContextManager[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, else of the dagster.yaml in the working directory.

    Without either, one that is forgotten at the end.
    """
    if "DAGSTER_HOME" in os.environ:
        return dg.DagsterInstance.get()
    if Path("dagster.yaml").exists():
        return dg.DagsterInstance.from_config(str(Path.cwd()))
    return dg.DagsterInstance.ephemeral()


def run_days(
    first: date,
    last: date,
    *,
    retry_rejected: bool = False,
    progress: Progress | None = None,
) -> tuple[RunOutcome, str, str | None]:
    """Bill the days from `first` to `last` as one run.

    Returns what it came to, the run's id, and the error of a run that failed.
    """
    billing = Billing(progress=progress, unattended=False)
    job = build_defs({"billing": billing}).resolve_job_def("bill_days")
    with instance() as dagster_instance:
        result = job.execute_in_process(
            instance=dagster_instance,
            raise_on_error=False,
            tags={
                "dagster/asset_partition_range_start": first.isoformat(),
                "dagster/asset_partition_range_end": last.isoformat(),
            },
            run_config={
                "ops": {"bill_usage_days": {"config": {"retry_rejected": retry_rejected}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
        )
    error = None
    if not result.success:
        failures = [e.step_failure_data for e in result.all_events if e.is_step_failure]
        causes = [data.error for data in failures if data.error is not None]
        error = "\n".join((c.cause or c).message.strip() for c in causes) or "the run failed"
    return billing.outcome, result.run_id, error
