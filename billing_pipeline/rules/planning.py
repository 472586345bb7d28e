"""The rules: from a target and what was reported before to the next report about a cell.

| meter              | first report           | correction                            |
| ------------------ | ------------------------- | ------------------------------------- |
| sum, no window     | the target, unless zero   | the signed difference to what Stripe recorded |
| last, no window    | the target, zero included | the target again, stamped later       |
| window = day       | the target                | the target again                      |
| window = hour      | refused before planning, by the meter catalogue                   |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime

from billing_pipeline.rules.adjustments import DECIDED_BY_PEOPLE, Entry, adjusted_by
from billing_pipeline.rules.eligibility import Eligibility, Payers
from billing_pipeline.rules.model import (
    NOT_COUNTED,
    UNRESOLVED,
    Cell,
    Formula,
    Hold,
    HoldReason,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
    Usage,
    Waiting,
    usage_of,
)
from billing_pipeline.rules.recorded import recorded_value, reported_customer
from billing_pipeline.rules.segments import Segment, whole_day
from billing_pipeline.rules.timestamps import stamp, too_old
from billing_pipeline.rules.values import check_target

SUPERSEDED = "superseded"
"""Error code of a planned event that was replaced before it could be counted: its customer, its
value or its reason to exist had changed."""

HARMLESS = frozenset({NOT_COUNTED, SUPERSEDED})
"""Unlike Stripe's refusals these say nothing against a report, so it may be made again."""

METER_AWAY = frozenset({"archived_meter", "no_meter"})
"""Error codes of a meter that was inactive; a later change of the meter may have fixed it."""


NO_PAYERS = Payers()

Outcome = MeterEvent | Hold | Waiting


@dataclass(frozen=True)
class DayPlan:
    """What one usage day asks for: events to report, usage to hold, cells that wait.

    `superseded` are (cell, revision) of planned events that no longer say what is to be said,
    `moot` those of refused ones where nothing is owed any more; `unfinished` are cells that ask
    for another event once this plan's is resolved.
    """

    usage_day: date
    events: list[MeterEvent] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    superseded: list[tuple[Cell, int]] = field(default_factory=list)
    moot: list[tuple[Cell, int]] = field(default_factory=list)
    unfinished: list[Cell] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the day has to be planned again after what is planned now."""
        return not self.unfinished and all(waiting.still_valid for waiting in self.waiting)

    def add(
        self, cell: Cell, outcomes: Iterable[Outcome], recorded: Sequence[RecordedEvent] = ()
    ) -> None:
        """Put what was planned for a cell, given what was `recorded`, where it belongs."""
        found = list(outcomes)
        self.holds.extend(o for o in found if isinstance(o, Hold))
        self.waiting.extend(o for o in found if isinstance(o, Waiting))
        events = [o for o in found if isinstance(o, MeterEvent)]
        # A cell has at most one unresolved event: the others follow when it is resolved.
        self.events.extend(events[:1])
        if len(events) > 1 or any(isinstance(o, Waiting) and o.more for o in found):
            self.unfinished.append(cell)
        if not any(isinstance(o, Waiting) for o in found):
            self.superseded.extend((cell, s.revision) for s in recorded if s.state is State.PLANNED)


def plan_cell(
    meter: Meter,
    cell: Cell,
    target: int,
    customer: str | None,
    recorded: Sequence[RecordedEvent],
    now: datetime,
    *,
    at: int | None = None,
    shared: bool = False,
    payers: Payers = NO_PAYERS,
    adjustments: Sequence[Entry] = (),
    retry_rejected: bool = False,
) -> Outcome | None:
    """The next report about a cell of a day that is not split, or why there is none.

    `target` is what the cell should be, `at` an explicit instant in unix seconds (a report
    made during the day); for the rest see `plan_segments`. None: Stripe has the target
    already, or refused exactly this report and nothing has changed since.
    """
    check_target(target)
    day = whole_day(cell.usage_day, usage_of(meter.measure, target))
    outcomes = plan_segments(
        meter,
        cell,
        [day],
        customer,
        recorded,
        now,
        at=at,
        shared=shared,
        payers=payers,
        adjustments=adjustments,
        retry_rejected=retry_rejected,
    )
    return outcomes[0] if outcomes else None


def plan_segments(
    meter: Meter,
    cell: Cell,
    segments: Sequence[Segment],
    customer: str | None,
    recorded: Sequence[RecordedEvent],
    now: datetime,
    *,
    at: int | None = None,
    shared: bool = False,
    gated: bool = False,
    undone: bool = False,
    payers: Payers = NO_PAYERS,
    adjustments: Sequence[Entry] = (),
    retry_rejected: bool = False,
) -> list[Outcome]:
    """What is to be reported about a cell, segment by segment; empty where nothing is.

    `customer` is the organization's customer today, `recorded` every event recorded about the cell so
    far, `shared` whether other organizations have the same customer, `gated` whether the counts
    wait for a person, `undone` whether a person took back what was reported from these counts,
    `payers` where the customers' eligibility stand, `adjustments` what adjustments add to the cell. Of several
    events only the first may be sent before it is resolved.
    Raises UsageDefect for a target that no correct counting can produce.
    """
    if any(s.state in UNRESOLVED - {State.PLANNED} for s in recorded):
        owed = [s.usage.of(meter.measure) + adjusted_by(adjustments, s) for s in segments]
        return [Waiting(cell, sum(owed))]
    firm = [s for s in recorded if s.state is not State.PLANNED]
    only = _only_segment(
        meter, segments, payers.eligibility_of(reported_customer(firm) or customer)
    )
    outcomes: list[Outcome] = []
    for segment in segments:
        if only is not None and segment is not only:
            left_out = check_target(segment.usage.of(meter.measure)) + adjusted_by(
                adjustments, segment
            )
            if left_out:
                reason = HoldReason.DAILY_WINDOW
                outcomes.append(Hold(cell, left_out, left_out, reason, segment.start, left_out))
            continue
        # On a meter with a daily window every event of the day is about the one value it keeps.
        segment = (
            recorded if only is not None else [s for s in recorded if segment.holds(s.timestamp)]
        )
        outcome = _next(
            meter,
            cell,
            segment,
            customer,
            [s for s in segment if s.state is not State.PLANNED],
            now,
            reported_for=reported_customer(firm),
            # Said or planned: revisions and timestamps only rise.
            revision=max((s.revision for s in recorded), default=0) + 1,
            after=max((s.timestamp for s in segment), default=None),
            segment=(segment.start, segment.end) if only is None and len(segments) > 1 else None,
            at=at,
            shared=shared,
            gated=gated,
            undone=undone,
            payers=payers,
            adjusted=adjusted_by(adjustments, segment),
            retry_rejected=retry_rejected,
        )
        if outcome is None:
            continue
        if isinstance(outcome, Hold) and len(segments) > 1:
            outcome = replace(outcome, start=segment.start)
        outcomes.append(outcome)
    # What is planned is certainly not counted. It stands if it is what would be planned now.
    first = next((o for o in outcomes if isinstance(o, MeterEvent)), None)
    for planned in recorded:
        if (
            planned.state is State.PLANNED
            and first is not None
            and (planned.customer, planned.value) == (first.customer, first.value)
            and not too_old(planned.timestamp, now)
            and any(s.holds(planned.timestamp) and s.holds(first.timestamp) for s in segments)
        ):
            holds: list[Outcome] = [o for o in outcomes if isinstance(o, Hold)]
            more = sum(isinstance(o, MeterEvent) for o in outcomes) > 1
            return [*holds, Waiting(cell, first.target, still_valid=True, more=more)]
    return outcomes


def _only_segment(
    meter: Meter, segments: Sequence[Segment], eligibility: Eligibility
) -> Segment | None:
    """On a meter that keeps one value a day: the segment that value is for, else None.

    The last one that may be reported.
    """
    if meter.event_time_window != "day" or len(segments) == 1:
        return None
    free = [s for s in segments if eligibility.hold_reason(meter.meter_id, s.end - 1) is None]
    return (free or segments)[-1]


def _next(
    meter: Meter,
    cell: Cell,
    segment: Segment,
    customer: str | None,
    recorded: Sequence[RecordedEvent],
    now: datetime,
    *,
    reported_for: str | None,
    revision: int,
    after: int | None,
    segment: tuple[int, int] | None,
    at: int | None,
    shared: bool,
    gated: bool,
    undone: bool,
    payers: Payers,
    adjusted: int,
    retry_rejected: bool,
) -> MeterEvent | Hold | None:
    target = check_target(segment.usage.of(meter.measure))
    at_stripe = recorded_value(meter, recorded)
    owed = target + adjusted - (at_stripe or 0)
    if not meter.replaces:
        target += adjusted
    value = target if meter.replaces else owed
    if at_stripe == target:
        return None
    if at_stripe is None and target == 0 and meter.formula is Formula.SUM:
        return None

    pays = reported_for or customer
    spoken = [s for s in recorded if s.state is not State.REJECTED or s.error_code not in HARMLESS]
    last = max(spoken, key=lambda s: s.revision, default=None)
    timestamp = stamp(segment.start, segment.end, after, at)
    reason = _why_hold(
        meter,
        segment,
        pays,
        payers.eligibility_of(pays),
        timestamp,
        now,
        at,
        undecided=cell.organization_id in payers.undecided,
        shared=shared and reported_for is None,
    )
    if reason is None and gated:
        return Hold(cell, value, target, HoldReason.GATE_CLOSED, difference=owed)
    if reason is None and undone:
        return Hold(cell, value, target, HoldReason.UNDONE, difference=owed)
    if reason is None and target < 0:
        return Hold(cell, value, target, HoldReason.BELOW_ZERO, difference=owed)
    if reason is not None:
        first_zero = at_stripe is None and target == 0
        decided = reason in DECIDED_BY_PEOPLE and owed == 0 and not first_zero
        return None if decided else Hold(cell, value, target, reason, 0, owed)
    if (
        last is not None
        and last.state is State.REJECTED
        and (last.customer, last.value) == (pays, value)
        and not meter_is_back(meter, last.error_code, last.last_attempt_at)
        and not retry_rejected
    ):
        return None
    assert pays is not None  # _why_hold says so
    assert timestamp is not None
    return MeterEvent(cell, revision, pays, value, target, timestamp, segment)


def meter_is_back(meter: Meter, error_code: str | None, last_attempt_at: int | None) -> bool:
    """Whether a meter that was away has been changed, as by reactivation, since it refused.

    Once per change: the attempt that follows is later than the change.
    """
    return (
        error_code in METER_AWAY
        and meter.changed_at is not None
        and last_attempt_at is not None
        and meter.changed_at >= last_attempt_at
    )


def _why_hold(
    meter: Meter,
    segment: Segment,
    customer: str | None,
    eligibility: Eligibility,
    timestamp: int | None,
    now: datetime,
    at: int | None,
    *,
    undecided: bool,
    shared: bool,
) -> HoldReason | None:
    if customer is None:
        return HoldReason.CUSTOMER_UNDECIDED if undecided else HoldReason.NO_CUSTOMER
    not_eligible = eligibility.hold_reason(meter.meter_id, timestamp or segment.end - 1)
    if not_eligible is not None:
        return not_eligible
    if shared and meter.replaces:
        return HoldReason.CUSTOMER_SHARED
    if at is None and now.timestamp() < segment.end:
        return HoldReason.DAY_NOT_OVER
    if timestamp is None:
        return HoldReason.NO_ROOM_IN_DAY
    if too_old(timestamp, now):
        return HoldReason.TOO_OLD
    return None


def plan_day(
    usage_day: date,
    meters: Sequence[Meter],
    usage: Mapping[str, Usage],
    payers: Payers,
    recorded: Mapping[Cell, Sequence[RecordedEvent]],
    now: datetime,
    *,
    segments_of: Mapping[str, Sequence[Segment]] | None = None,
    only_split: bool = False,
    gated: Container[str] = (),
    undone: Container[Cell] = (),
    adjustments: Mapping[Cell, Sequence[Entry]] | None = None,
    retry_rejected: bool = False,
) -> DayPlan:
    """Plan every cell of a usage day.

    `usage` is the day's snapshot by organization, `payers` who pays today, `recorded` what was
    said by cell. An organization missing from the snapshot has a target of zero: if it was
    reported before, it is corrected down; if it has a customer, a `last` meter reports the zero.
    `segments_of` gives the segments of organizations whose periods end inside the day; with
    `only_split` nothing else is planned, because the day itself is not over. `gated` are the
    organizations whose counts wait for a person, `undone` the cells of which a run was undone,
    `adjustments` what adjustments add to the cells.
    """
    plan = DayPlan(usage_day)
    segments_of, adjustments = segments_of or {}, adjustments or {}
    customers = payers.customers
    for meter in meters:
        organizations = set(usage) | {
            cell.organization_id
            for cell in (*recorded, *adjustments)
            if cell.event_name == meter.event_name
        }
        if meter.formula is Formula.LAST:
            organizations |= set(customers)
        if only_split:
            organizations = set(segments_of)
        shared = shared_customers(meter, customers, recorded)
        for organization_id in sorted(organizations):
            cell = Cell(usage_day, organization_id, meter.event_name)
            customer = customers.get(organization_id)
            history = recorded.get(cell, ())
            day = whole_day(usage_day, usage.get(organization_id, Usage()))
            outcomes = plan_segments(
                meter,
                cell,
                segments_of.get(organization_id, [day]),
                customer,
                history,
                now,
                shared=customer in shared,
                gated=organization_id in gated,
                undone=cell in undone,
                payers=payers,
                adjustments=adjustments.get(cell, ()),
                retry_rejected=retry_rejected,
            )
            plan.add(cell, outcomes, history)
            refused = [
                (cell, recorded.revision)
                for recorded in history
                if recorded.state is State.REJECTED and recorded.error_code not in HARMLESS
            ]
            segments, entries = segments_of.get(organization_id, [day]), adjustments.get(cell, ())
            if refused and not outcomes and _nothing_is_owed(meter, segments, history, entries):
                plan.moot.extend(refused)
    return plan


def _nothing_is_owed(
    meter: Meter,
    segments: Sequence[Segment],
    recorded: Sequence[RecordedEvent],
    adjustments: Sequence[Entry],
) -> bool:
    """Whether Stripe has of every part of a cell what it should, without what it refused."""
    for segment in segments:
        target = segment.usage.of(meter.measure)
        held = recorded_value(meter, [s for s in recorded if segment.holds(s.timestamp)])
        if meter.formula is Formula.LAST and held != target:
            return False
        if meter.formula is Formula.SUM and (held or 0) != target + adjusted_by(
            adjustments, segment
        ):
            return False
    return True


def shared_customers(
    meter: Meter, customers: Mapping[str, str], recorded: Mapping[Cell, Sequence[RecordedEvent]]
) -> set[str]:
    """The customers to which more than one organization's usage of a day goes on this meter.

    A cell goes to the customer it was reported for, whatever the mapping says today.
    """
    reported = {
        cell.organization_id: customer
        for cell, history in recorded.items()
        if cell.event_name == meter.event_name
        and (customer := reported_customer([s for s in history if s.state is not State.PLANNED]))
    }
    counts = Counter({**customers, **reported}.values())
    return {customer for customer, number in counts.items() if number > 1}
