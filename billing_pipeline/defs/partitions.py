"""Partitions: UTC usage days, and the months in which billing periods end."""

from __future__ import annotations

import dagster as dg

from billing_pipeline.settings import load_settings

# Today is a partition too, so that people can look at it. The completeness check keeps it from
# being reported before it is over.
usage_days = dg.DailyPartitionsDefinition(
    start_date=load_settings().billing_start_day.isoformat(), timezone="UTC", end_offset=1
)

billing_months = dg.MonthlyPartitionsDefinition(
    start_date=load_settings().billing_start_day.replace(day=1).isoformat(),
    timezone="UTC",
    end_offset=1,
)
