"""Dagster only: wiring without rules, SQL or HTTP. One file per kind of definition."""

from billing_pipeline.defs.build import build_defs
from billing_pipeline.defs.in_process import run_days
from billing_pipeline.defs.resources import Billing, DayOutcome, RunOutcome

__all__ = ["Billing", "DayOutcome", "RunOutcome", "build_defs", "run_days"]
