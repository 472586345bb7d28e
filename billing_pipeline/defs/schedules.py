"""The daily run."""

from datetime import timedelta

import dagster as dg

from billing_pipeline.defs.jobs import bill_days


# Ten minutes after midnight: writers close their files, and no reading of the day is to come.
@dg.schedule(job=bill_days, cron_schedule="10 0 * * *", execution_timezone="UTC")
def bill_yesterday(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Bill the UTC day that has just ended. Late readings are the sensors' business."""
    day = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
    return dg.RunRequest(run_key=day, partition_key=day)
