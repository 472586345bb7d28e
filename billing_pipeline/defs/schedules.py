"""The daily run, and the hourly look for webhooks that never came."""

from datetime import timedelta

import dagster as dg

from billing_pipeline.defs.jobs import bill_days, missed_stripe_events

SHORT_LOOK, LONG_LOOK = 3.0, 96.0
"""Hours to look back: every hour, because an invoice stays a draft for one hour; and once a day
as far as Stripe keeps trying to deliver, and a day more."""


# Ten minutes after midnight: writers close their files, and no reading of the day is to come.
@dg.schedule(job=bill_days, cron_schedule="10 0 * * *", execution_timezone="UTC")
def bill_yesterday(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Bill the UTC day that has just ended. Late readings are the sensors' business."""
    day = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
    return dg.RunRequest(run_key=day, partition_key=day)


@dg.schedule(job=missed_stripe_events, cron_schedule="20 * * * *", execution_timezone="UTC")
def missed_webhooks(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Find the events that no webhook delivered: an hourly look, a long one each night."""
    at = context.scheduled_execution_time
    config = {"hours": LONG_LOOK if at.hour == 3 else SHORT_LOOK}
    return dg.RunRequest(
        run_key=at.isoformat(), run_config={"ops": {"find_missed_events": {"config": config}}}
    )
