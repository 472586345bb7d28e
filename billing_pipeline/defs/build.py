"""Everything put together; a test or a special deployment replaces resources here."""

from __future__ import annotations

from typing import Any

import dagster as dg

from billing_pipeline.defs import assets, jobs, schedules, sensors, specs
from billing_pipeline.defs.resources import Billing


def build_defs(resource_overrides: dict[str, Any] | None = None) -> dg.Definitions:
    """The definitions of the code location. Loading them contacts nobody and needs no key."""
    return dg.Definitions(
        assets=[specs.READINGS, assets.bill_usage_days],
        jobs=[jobs.bill_days, jobs.state_days],
        schedules=[schedules.bill_yesterday],
        sensors=[sensors.changed_readings, sensors.unfinished_usage],
        resources={"billing": Billing(), **(resource_overrides or {})},
        # Each run is one chain of steps: a process per step would only double its start.
        executor=dg.in_process_executor,
    )
