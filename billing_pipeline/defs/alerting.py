"""Alerts: a sensor for matters that need a person, and one for runs that failed."""

import hashlib
import json

import dagster as dg

from billing_pipeline.defs.resources import Billing
from billing_pipeline.operations.alerts import alerts, post
from billing_pipeline.settings import load_settings


@dg.sensor(minimum_interval_seconds=300)
def alert_sensor(
    context: dg.SensorEvaluationContext, billing: dg.ResourceParam[Billing]
) -> dg.SkipReason:
    """Post what needs a person to BILLING_ALERT_URL, whenever that changes."""
    with billing.open("alert_sensor") as ctx:
        found = alerts(ctx)
        url = ctx.settings.billing_alert_url
    message = "; ".join(alert.text for alert in found) or "all is well again"
    state = hashlib.sha256(json.dumps(sorted((a.kind, a.count) for a in found)).encode())
    changed = state.hexdigest() != (context.cursor or hashlib.sha256(b"[]").hexdigest())
    if url is not None and changed:
        post(url.get_secret_value(), f"billing-pipeline: {message}", found)
    context.update_cursor(state.hexdigest())
    return dg.SkipReason(message)


@dg.run_failure_sensor(monitor_all_code_locations=False)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Post every run that failed to BILLING_ALERT_URL."""
    url = load_settings().billing_alert_url
    run = context.dagster_run
    message = f"the run {run.run_id} of {run.job_name} failed: {context.failure_event.message}"
    if url is not None:
        post(url.get_secret_value(), f"billing-pipeline: {message}")
    else:
        context.log.error(message)
