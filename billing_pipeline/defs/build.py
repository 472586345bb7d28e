"""All definitions; a test or a special deployment replaces resources here."""

from __future__ import annotations

from typing import Any

import dagster as dg

from billing_pipeline.defs import alerting, assets, events, jobs, months, schedules, sensors, specs
from billing_pipeline.defs.resources import Billing


def build_defs(resource_overrides: dict[str, Any] | None = None) -> dg.Definitions:
    """The definitions of the code location. Loading them contacts nobody and needs no key."""
    return dg.Definitions(
        assets=[
            specs.READINGS,
            specs.STRIPE_EVENTS,
            assets.bill_usage_days,
            events.subscriptions,
            months.reconciliation,
        ],
        jobs=[
            jobs.bill_days,
            jobs.report_days,
            jobs.apply_stripe_events,
            jobs.missed_stripe_events,
            months.reconcile_months,
        ],
        schedules=[schedules.bill_yesterday, schedules.missed_webhooks, months.reconcile_daily],
        sensors=[
            sensors.changed_readings,
            sensors.unfinished_usage,
            sensors.stripe_event_sensor,
            sensors.closing_periods,
            alerting.alert_sensor,
            alerting.failed_runs,
        ],
        resources={"billing": Billing(), **(resource_overrides or {})},
        # A run is one chain of steps: a process for each step would only double its start.
        executor=dg.in_process_executor,
    )
