"""WHAT TO SAY: from usage and what was said before to the next meter events.

Pure functions over frozen dataclasses: no I/O and no clock of their own; `now` is passed in.

- `vocabulary`  the words everything else uses: meter, cell, meter event, state, hold
- `values`      which numbers may be stated at all
- `timestamps`  where inside its usage day an event is stamped
- `terms`       under which subscriptions a customer may be stated, and what is closed
- `segments`    parts of a day that a billing period ends in
- `standing`    what Stripe holds for a cell, as far as the ledger knows
- `gates`       whether a day's counts are plausible, or wait for a person
- `planning`    the rules: (target, what was said, the meter, now) → event, hold or nothing
- `adjustments` what becomes of usage that its own period takes no more
- `agreement`   whether Stripe's summary agrees with what was accepted
- `reconciling` from readings to invoice, each difference with a cause
"""

from billing_pipeline.metering.adjustments import CARRIED, Entry, carry, entered
from billing_pipeline.metering.agreement import (
    Agreement,
    judge,
    missing_from,
    possible_figures,
)
from billing_pipeline.metering.gates import Finding, Gates, implausible
from billing_pipeline.metering.planning import (
    HARMLESS,
    SUPERSEDED,
    DayPlan,
    meter_is_back,
    plan_cell,
    plan_day,
    plan_segments,
    shared_customers,
)
from billing_pipeline.metering.reconciling import Cause, CellFacts, HeldPart, Reconciled, Step
from billing_pipeline.metering.segments import Segment, bounds, whole_day
from billing_pipeline.metering.standing import standing
from billing_pipeline.metering.terms import (
    DEFAULT_POLICY,
    Payers,
    Period,
    Policy,
    Subscription,
    Terms,
)
from billing_pipeline.metering.timestamps import too_old
from billing_pipeline.metering.vocabulary import (
    NOT_COUNTED,
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
    usage_of,
)

__all__ = [
    "CARRIED",
    "DEFAULT_POLICY",
    "HARMLESS",
    "NOT_COUNTED",
    "SENT",
    "SUPERSEDED",
    "UNSETTLED",
    "Agreement",
    "Cause",
    "Cell",
    "CellFacts",
    "DayPlan",
    "Entry",
    "Finding",
    "Formula",
    "Gates",
    "HeldPart",
    "Hold",
    "HoldReason",
    "Measure",
    "Meter",
    "MeterEvent",
    "MeterSpec",
    "Payers",
    "Period",
    "Policy",
    "Reconciled",
    "Said",
    "Segment",
    "State",
    "Step",
    "Subscription",
    "Terms",
    "Usage",
    "Waiting",
    "bounds",
    "carry",
    "entered",
    "implausible",
    "judge",
    "meter_is_back",
    "missing_from",
    "plan_cell",
    "plan_day",
    "plan_segments",
    "possible_figures",
    "shared_customers",
    "standing",
    "too_old",
    "usage_of",
    "whole_day",
]
