"""WHAT TO SAY: from usage and what was said before to the next meter events.

Pure functions over frozen dataclasses: no I/O and no clock of their own; `now` is passed in.

- `vocabulary`  the words everything else uses: meter, cell, meter event, state, hold
- `values`      which numbers may be stated at all
- `timestamps`  where inside its usage day an event is stamped
- `standing`    what Stripe holds for a cell, as far as the ledger knows
- `planning`    the rules: (target, what was said, the meter, now) → event, hold or nothing
"""

from billing_pipeline.metering.planning import DayPlan, plan_cell, plan_day
from billing_pipeline.metering.standing import standing
from billing_pipeline.metering.vocabulary import (
    SENT,
    UNSETTLED,
    Cell,
    Formula,
    Hold,
    HoldReason,
    Measure,
    Meter,
    MeterEvent,
    MeterSpec,
    Said,
    State,
    Usage,
    Waiting,
)

__all__ = [
    "SENT",
    "UNSETTLED",
    "Cell",
    "DayPlan",
    "Formula",
    "Hold",
    "HoldReason",
    "Measure",
    "Meter",
    "MeterEvent",
    "MeterSpec",
    "Said",
    "State",
    "Usage",
    "Waiting",
    "plan_cell",
    "plan_day",
    "standing",
]
