"""The plan of a usage day: which events to send, which usage to hold. Pure functions.

| meter              | first report              | correction                                     |
| ------------------ | ------------------------- | ---------------------------------------------- |
| sum, no window     | the target, unless zero   | the signed difference to what Stripe recorded  |
| last, no window    | the target, zero included | the target again, stamped later                |
| window = day       | the target                | the target again                               |
| window = hour      | refused before planning, by the meter catalogue                            |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property

from billing_pipeline.rules.adjustments import Entry, adjusted_by
from billing_pipeline.rules.day_inputs import DayInputs
from billing_pipeline.rules.eligibility import NO_PAYERS, Payers
from billing_pipeline.rules.holds import NEEDS_ADJUSTMENT, Hold, HoldReason
from billing_pipeline.rules.model import (
    UNRESOLVED,
    Cell,
    Formula,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
    Waiting,
)
from billing_pipeline.rules.recorded import recorded_value, reported_customer
from billing_pipeline.rules.segments import Segment
from billing_pipeline.rules.timestamps import stamp, too_old
from billing_pipeline.rules.values import check_target
from billing_pipeline.stripe_facts import METER_INACTIVE_CODES, OLDEST_REPORTED

OLDEST_SECONDS = int(OLDEST_REPORTED.total_seconds())
AGEING = frozenset({HoldReason.UNDONE, HoldReason.BELOW_ZERO})
"""Hold reasons that give way to `too_old` one day."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A report that Stripe refused and that nothing has changed about: it is not made again.

    `timestamp` (unix seconds) is the one that it would have.
    """

    timestamp: int


Outcome = MeterEvent | Hold | Waiting | Refused


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a person may ask of a run: report again what Stripe refused, or what was undone."""

    retry_rejected: bool = False
    report_undone: bool = False


NO_OPTIONS = PlanOptions()


@dataclass(frozen=True)
class DayPlan:
    """What a usage day asks for: events to report, usage to hold, cells that wait.

    `superseded` are (cell, revision) of planned events that are no longer right, `no_longer_owed`
    those of refused events where nothing is missing any more. `unfinished` cells need another event
    once this plan's event is resolved. `why_not`: why nothing could be planned at all.
    """

    usage_day: date
    events: list[MeterEvent] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    superseded: list[tuple[Cell, int]] = field(default_factory=list)
    no_longer_owed: list[tuple[Cell, int]] = field(default_factory=list)
    unfinished: list[Cell] = field(default_factory=list)
    ageing: list[int] = field(default_factory=list)
    """Timestamps of reports that are not made now, and that become too old one day."""
    why_not: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the day has to be planned again once these events are resolved."""
        return not self.unfinished and all(waiting.still_valid for waiting in self.waiting)

    @property
    def deadline(self) -> int | None:
        """The instant (unix seconds) after which age alone changes the plan; None: never."""
        return min(self.ageing) + OLDEST_SECONDS if self.ageing else None

    def add(
        self, cell: Cell, outcomes: Iterable[Outcome], recorded: Sequence[RecordedEvent] = ()
    ) -> None:
        """Add what was planned for a cell with these recorded events."""
        found = list(outcomes)
        self.holds.extend(o for o in found if isinstance(o, Hold))
        self.waiting.extend(o for o in found if isinstance(o, Waiting))
        self.ageing.extend(
            o.timestamp
            for o in found
            if isinstance(o, Refused) or (isinstance(o, Hold) and o.reason in AGEING)
            if o.timestamp is not None
        )
        events = [o for o in found if isinstance(o, MeterEvent)]
        # A cell has at most one unresolved event: the others follow when it is resolved.
        self.events.extend(events[:1])
        if len(events) > 1 or any(isinstance(o, Waiting) and o.more for o in found):
            self.unfinished.append(cell)
        if not any(isinstance(o, Waiting) for o in found):
            self.superseded.extend((cell, e.revision) for e in recorded if e.state is State.PLANNED)


@dataclass(frozen=True)
class CellInputs:
    """What one cell is planned from.

    `customer` is the organization's customer today, `shared` whether other organizations have the
    same one. `at` is an instant asked for (unix seconds), for counts reported during the day.
    """

    meter: Meter
    cell: Cell
    segments: Sequence[Segment]
    customer: str | None
    recorded: Sequence[RecordedEvent]
    now: datetime
    payers: Payers = NO_PAYERS
    adjustments: Sequence[Entry] = ()
    at: int | None = None
    shared: bool = False
    gated: bool = False
    undone: bool = False
    retry_rejected: bool = False

    @cached_property
    def reported_for(self) -> str | None:
        """The customer that the cell was first reported for. A planned event was not sent."""
        return reported_customer([e for e in self.recorded if e.state is not State.PLANNED])

    @property
    def payer(self) -> str | None:
        """The customer to report for: a cell keeps the first one, whatever the mapping says."""
        return self.reported_for or self.customer


def plan(inputs: DayInputs, options: PlanOptions = NO_OPTIONS) -> DayPlan:
    """Plan the cells of a usage day. Raises UsageDefect for a count that cannot be right.

    An organization that is missing from the snapshot has a target of zero. If it was reported
    before, it is corrected down; if it has a customer, a `last` meter is reported the zero.
    """
    why_not = inputs.why_not_planned
    planned = DayPlan(inputs.usage_day, why_not=why_not)
    if why_not is not None:
        return planned
    for meter in inputs.meters:
        shared = shared_customers(meter, inputs.payers.customers, inputs.recorded)
        for organization in _organizations(inputs, meter):
            cell = _cell_inputs(inputs, meter, organization, shared, options)
            outcomes = plan_cell(cell)
            planned.add(cell.cell, outcomes, cell.recorded)
            refused = [(cell.cell, e.revision) for e in cell.recorded if e.is_refused]
            if refused and not outcomes and _nothing_is_missing(cell):
                planned.no_longer_owed.extend(refused)
    return planned


def _organizations(inputs: DayInputs, meter: Meter) -> list[str]:
    """The organizations to plan on this meter."""
    if inputs.is_partial:
        return sorted(inputs.segments)
    known = (*inputs.recorded, *inputs.adjustments)
    found = set(inputs.usage)
    found |= {cell.organization_id for cell in known if cell.event_name == meter.event_name}
    if meter.formula is Formula.LAST:
        found |= set(inputs.payers.customers)
    return sorted(found if inputs.only is None else found & set(inputs.only))


def _cell_inputs(
    inputs: DayInputs, meter: Meter, organization: str, shared: set[str], options: PlanOptions
) -> CellInputs:
    cell = Cell(inputs.usage_day, organization, meter.event_name)
    customer = inputs.payers.customers.get(organization)
    return CellInputs(
        meter,
        cell,
        inputs.segments_of(organization),
        customer,
        inputs.recorded.get(cell, ()),
        inputs.now,
        inputs.payers,
        inputs.adjustments.get(cell, ()),
        shared=customer in shared,
        gated=inputs.waits_at_gate(organization),
        undone=cell in inputs.undone and not options.report_undone,
        retry_rejected=options.retry_rejected,
    )


def plan_cell(inputs: CellInputs) -> list[Outcome]:
    """What is to be reported about a cell, segment by segment; empty if nothing is.

    Only the first of several events may be sent before it is resolved.
    Raises UsageDefect for a target that no correct counting can produce.
    """
    if any(e.state in UNRESOLVED - {State.PLANNED} for e in inputs.recorded):
        return [Waiting(inputs.cell, sum(_target(inputs, s) for s in inputs.segments))]
    only = _segment_of_daily_window(inputs)
    outcomes: list[Outcome] = []
    for segment in inputs.segments:
        outcome: Outcome | None
        if only is not None and segment is not only:
            outcome = _hold_beside_daily_window(inputs, segment)
        else:
            outcome = _plan_segment(inputs, segment, keeps_one_a_day=only is not None)
        if outcome is not None:
            outcomes.append(outcome)
    return _keep_planned(inputs, outcomes)


def _target(inputs: CellInputs, segment: Segment) -> int:
    """What a segment should be, adjustments included."""
    counted = check_target(segment.usage.of(inputs.meter.measure))
    return counted + adjusted_by(inputs.adjustments, segment)


def _segment_of_daily_window(inputs: CellInputs) -> Segment | None:
    """On a meter that keeps one value a day: the segment it is reported for; otherwise None.

    It is the last one that may be reported.
    """
    meter = inputs.meter
    if meter.event_time_window != "day" or len(inputs.segments) == 1:
        return None
    eligibility = inputs.payers.eligibility_of(inputs.payer)
    free = [
        s for s in inputs.segments if eligibility.hold_reason(meter.meter_id, s.end - 1) is None
    ]
    return (free or inputs.segments)[-1]


def _hold_beside_daily_window(inputs: CellInputs, segment: Segment) -> Hold | None:
    amount = _target(inputs, segment)
    reason = HoldReason.GATE_CLOSED if inputs.gated else HoldReason.DAILY_WINDOW
    if not amount:
        return None
    return Hold(inputs.cell, amount, amount, reason, segment.start, amount)


def _plan_segment(
    inputs: CellInputs, segment: Segment, *, keeps_one_a_day: bool
) -> MeterEvent | Hold | Refused | None:
    meter, cell = inputs.meter, inputs.cell
    # On a meter with a daily window every event of the day is about its one value.
    events = [e for e in inputs.recorded if keeps_one_a_day or segment.contains(e.timestamp)]
    sent = [e for e in events if e.state is not State.PLANNED]
    at_stripe = recorded_value(meter, sent)
    owed = _target(inputs, segment) - (at_stripe or 0)
    # Adjustments add up; on a meter that keeps one value they only say what was decided.
    target = segment.usage.of(meter.measure) if meter.replaces else _target(inputs, segment)
    value = target if meter.replaces else owed
    if at_stripe == target:
        return None
    if at_stripe is None and target == 0 and meter.formula is Formula.SUM:
        return None
    after = max((e.timestamp for e in events), default=None)
    timestamp = stamp(segment.start, segment.end, after, inputs.at)
    is_first_zero = at_stripe is None and target == 0
    reason = _hold_reason(inputs, segment, timestamp)
    if reason in NEEDS_ADJUSTMENT and owed == 0 and not is_first_zero:
        return None  # a person has decided
    if inputs.gated and (reason is None or reason in NEEDS_ADJUSTMENT):
        reason = HoldReason.GATE_CLOSED  # counts that may be wrong are no amount to decide about
    elif reason is None and inputs.undone:
        reason = HoldReason.UNDONE
    elif reason is None and target < 0:
        reason = HoldReason.BELOW_ZERO
    if reason is not None:
        # Of a day that is not over, the only segment may be one that has ended.
        start = 0 if segment.is_whole_day else segment.start
        return Hold(cell, value, target, reason, start, owed, timestamp)
    assert inputs.payer is not None  # _hold_reason says so
    assert timestamp is not None
    if _was_refused(inputs, sent, value):
        return Refused(timestamp)
    split = not segment.is_whole_day and not keeps_one_a_day
    return MeterEvent(
        cell,
        max((e.revision for e in inputs.recorded), default=0) + 1,
        inputs.payer,
        value,
        target,
        timestamp,
        (segment.start, segment.end) if split else None,
    )


def _hold_reason(inputs: CellInputs, segment: Segment, timestamp: int | None) -> HoldReason | None:
    """Why a segment cannot be reported, whatever people decided; None if it can."""
    meter, payer, payers = inputs.meter, inputs.payer, inputs.payers
    if payer is None:
        undecided = inputs.cell.organization_id in payers.undecided
        return HoldReason.CUSTOMER_UNDECIDED if undecided else HoldReason.NO_CUSTOMER
    eligibility = payers.eligibility_of(payer)
    not_eligible = eligibility.hold_reason(meter.meter_id, timestamp or segment.end - 1)
    if not_eligible is not None:
        return not_eligible
    if inputs.shared and meter.replaces and inputs.reported_for is None:
        return HoldReason.CUSTOMER_SHARED
    if inputs.at is None and inputs.now.timestamp() < segment.end:
        return HoldReason.DAY_NOT_OVER
    if timestamp is None:
        return HoldReason.NO_ROOM_IN_DAY
    if too_old(timestamp, inputs.now):
        return HoldReason.TOO_OLD
    return None


def _was_refused(inputs: CellInputs, sent: Sequence[RecordedEvent], value: int) -> bool:
    """Whether Stripe refused exactly this report, and nothing has changed since."""
    meaningful = [e for e in sent if e.state is not State.REJECTED or e.is_refused]
    last = max(meaningful, key=lambda e: e.revision, default=None)
    return (
        last is not None
        and last.is_refused
        and (last.customer, last.value) == (inputs.payer, value)
        and not meter_is_back(inputs.meter, last)
        and not inputs.retry_rejected
    )


def meter_is_back(meter: Meter, refused: RecordedEvent) -> bool:
    """Whether a meter that was inactive has been changed, as by reactivation, since it refused.

    Once per change: the attempt that follows is later than the change.
    """
    return (
        refused.error_code in METER_INACTIVE_CODES
        and meter.changed_at is not None
        and refused.last_attempt_at is not None
        and meter.changed_at >= refused.last_attempt_at
    )


def _keep_planned(inputs: CellInputs, outcomes: list[Outcome]) -> list[Outcome]:
    """An event that is planned already is kept if it is what would be planned now."""
    first = next((o for o in outcomes if isinstance(o, MeterEvent)), None)
    for planned in inputs.recorded:
        if (
            planned.state is State.PLANNED
            and first is not None
            and (planned.customer, planned.value) == (first.customer, first.value)
            and not too_old(planned.timestamp, inputs.now)
            and any(
                s.contains(planned.timestamp) and s.contains(first.timestamp)
                for s in inputs.segments
            )
        ):
            holds: list[Outcome] = [o for o in outcomes if isinstance(o, Hold | Refused)]
            more = sum(isinstance(o, MeterEvent) for o in outcomes) > 1
            return [*holds, Waiting(inputs.cell, first.target, still_valid=True, more=more)]
    return outcomes


def _nothing_is_missing(inputs: CellInputs) -> bool:
    """Whether Stripe has recorded of every segment what it should, without what it refused."""
    for segment in inputs.segments:
        recorded = recorded_value(
            inputs.meter, [e for e in inputs.recorded if segment.contains(e.timestamp)]
        )
        if inputs.meter.formula is Formula.LAST:
            if recorded != segment.usage.of(inputs.meter.measure):
                return False
        elif (recorded or 0) != _target(inputs, segment):
            return False
    return True


def shared_customers(
    meter: Meter, customers: Mapping[str, str], recorded: Mapping[Cell, Sequence[RecordedEvent]]
) -> set[str]:
    """The customers that more than one organization's usage of a day is reported for on this meter.

    A cell is reported for the customer that it was first reported for, whatever the mapping says.
    """
    reported = {
        cell.organization_id: customer
        for cell, events in recorded.items()
        if cell.event_name == meter.event_name
        and (customer := reported_customer([e for e in events if e.state is not State.PLANNED]))
    }
    counts = Counter({**customers, **reported}.values())
    return {customer for customer, number in counts.items() if number > 1}
