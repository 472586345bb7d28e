"""Planning in few words: a day that is over, one organization, and a customer that may be reported.

A test names only what is different in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from billing_pipeline.rules.day_inputs import DayInputs
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.holds import Hold
from billing_pipeline.rules.model import (
    Cell,
    Formula,
    Measure,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
    Usage,
    usage_of,
)
from billing_pipeline.rules.planning import CellInputs, DayPlan, Outcome, Refused, plan, plan_cell
from billing_pipeline.rules.segments import Segment, whole_day
from billing_pipeline.rules.timestamps import day_end, day_start

DAY = date(2026, 3, 10)
START, NOON, END = day_start(DAY), day_start(DAY) + 43_200, day_end(DAY)
NOW = datetime(2026, 3, 11, 0, 10, tzinfo=UTC)
SUM = Meter("temperature_readings", Formula.SUM, Measure.READING_VOLUME, meter_id="mtr_r")
LAST = Meter("active_sensors", Formula.LAST, Measure.ACTIVE_SENSORS, meter_id="mtr_s")
SUM_BY_DAY = Meter("temperature_readings", Formula.SUM, Measure.READING_VOLUME, "day")
LAST_BY_DAY = Meter("active_sensors", Formula.LAST, Measure.ACTIVE_SENSORS, "day")
MAPPED = Payers({"org": "cus"})


def cell(meter: Meter, organization: str = "org") -> Cell:
    return Cell(DAY, organization, meter.event_name)


def recorded(*values: int, state: State = State.ACCEPTED, **more: Any) -> list[RecordedEvent]:
    """Events about the whole day, one for each value, in the order of revisions."""
    return [
        RecordedEvent(n, "cus", value, value, END - 3600 + n - 1, state, **more)
        for n, value in enumerate(values, start=1)
    ]


def halves(morning: int, afternoon: int) -> list[Segment]:
    """The day with a period boundary at noon, and so many sensors and readings on each side."""
    return [
        Segment(START, NOON, Usage(morning, morning)),
        Segment(NOON, END, Usage(afternoon, afternoon)),
    ]


def plan_segments(
    meter: Meter,
    segments: Sequence[Segment],
    events: Sequence[RecordedEvent] = (),
    customer: str | None = "cus",
    now: datetime = NOW,
    **more: Any,
) -> list[Outcome]:
    outcomes = plan_cell(CellInputs(meter, cell(meter), segments, customer, events, now, **more))
    return [outcome for outcome in outcomes if not isinstance(outcome, Refused)]


def plan_one(
    meter: Meter, target: int, events: Sequence[RecordedEvent] = (), **more: Any
) -> Outcome | None:
    """What is planned for the whole day; None: nothing."""
    segments = [whole_day(DAY, usage_of(meter.measure, target))]
    outcomes = plan_segments(meter, segments, events, **more)
    assert len(outcomes) <= 1
    return outcomes[0] if outcomes else None


def plan_event(
    meter: Meter, target: int, events: Sequence[RecordedEvent] = (), **more: Any
) -> MeterEvent:
    outcome = plan_one(meter, target, events, **more)
    assert isinstance(outcome, MeterEvent)
    return outcome


def plan_hold(meter: Meter, target: int, events: Sequence[RecordedEvent] = (), **more: Any) -> Hold:
    outcome = plan_one(meter, target, events, **more)
    assert isinstance(outcome, Hold)
    return outcome


def plan_day(
    meters: Sequence[Meter],
    usage: Mapping[str, Usage],
    payers: Payers = MAPPED,
    recorded: Mapping[Cell, Sequence[RecordedEvent]] | None = None,
    **more: Any,
) -> DayPlan:
    """The plan of the day from a snapshot with this usage."""
    inputs = DayInputs(
        DAY, NOW, meters, "snap", usage, payers=payers, recorded=recorded or {}, **more
    )
    return plan(inputs)
