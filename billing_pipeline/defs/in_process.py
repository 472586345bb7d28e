"""A run of the billing job in this process, against the configured Dagster instance."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import dagster as dg
from filelock import FileLock

from billing_pipeline.defs.assets import BY_TAG
from billing_pipeline.defs.build import build_defs
from billing_pipeline.defs.resources import Billing, RunOutcome
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.operations.context import Actor, Progress


@contextmanager
def instance() -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, else of the dagster.yaml in the working directory.

    Without either, one that is forgotten at the end.
    """
    home = os.environ.get("DAGSTER_HOME") or (Path.cwd() if Path("dagster.yaml").exists() else None)
    if home is None:
        with dg.DagsterInstance.ephemeral() as found:
            yield found
        return
    if not Path(home).is_dir():
        raise ConfigurationError(f"DAGSTER_HOME={home} is not a folder")
    # If two processes made the tables of a new SQLite instance at once, both would fail.
    name = hashlib.sha256(str(Path(home).resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"billing-dagster-{name}.lock"):
        opened = dg.DagsterInstance.from_config(str(Path(home).resolve()))
        opened.get_runs(limit=1)
        opened.has_asset_key(dg.AssetKey("usage_snapshot"))
    with opened:
        yield opened


def run_days(
    first: date,
    last: date,
    by: Actor,
    *,
    retry_rejected: bool = False,
    recount: bool = False,
    progress: Progress | None = None,
) -> tuple[RunOutcome, str, str | None]:
    """Bill the days from `first` to `last` as one run; `by` says who does it, and why.

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
                BY_TAG: by.who,
            },
            run_config={
                "ops": {
                    "bill_usage_days": {
                        "config": {
                            "retry_rejected": retry_rejected,
                            "recount": recount,
                            "reason": by.reason,
                        }
                    }
                },
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
        )
    error = None
    if not result.success:
        failures = [e.step_failure_data for e in result.all_events if e.is_step_failure]
        causes = [data.error for data in failures if data.error is not None]
        message = "\n".join((c.cause or c).message.strip() for c in causes) or "the run failed"
        error = message.removeprefix("dagster._core.definitions.events.Failure: ")
    return billing.outcome, result.run_id, error
