"""The daily run, and the hourly search for webhooks that never came."""

from datetime import timedelta

import dagster as dg

from billing_pipeline.defs.jobs import bill_days, missed_stripe_events

SHORT_LOOK, LONG_LOOK = 3.0, 96.0
"""Hours to look back: a short look every hour, because an invoice is a draft for one hour; a long
one every night, for as long as Stripe retries webhooks and one day more."""


# Ten minutes after midnight, so that writers can close their files.
@dg.schedule(job=bill_days, cron_schedule="10 0 * * *", execution_timezone="UTC")
def bill_yesterday(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Bill the UTC day that has just ended. The sensors bill late readings."""
    day = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
    return dg.RunRequest(run_key=day, partition_key=day)


@dg.schedule(job=missed_stripe_events, cron_schedule="20 * * * *", execution_timezone="UTC")
def missed_webhooks(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Find Stripe events that no webhook delivered: every hour, and further back every night."""
    at = context.scheduled_execution_time
    config = {"hours": LONG_LOOK if at.hour == 3 else SHORT_LOOK}
    return dg.RunRequest(
        run_key=at.isoformat(), run_config={"ops": {"find_missed_events": {"config": config}}}
    )
