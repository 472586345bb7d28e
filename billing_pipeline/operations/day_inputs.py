"""Reading what days are planned from: the only place where a `DayInputs` is put together.

`SpanInputs` is what all days of a span share. `read_day_inputs` reads one day in one transaction;
`stale_days` compares the digests of many days at once.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta

from sqlalchemy import Connection

from billing_pipeline.ledger import days as ledger_days
from billing_pipeline.ledger.adjustments import adjustment_entries_of
from billing_pipeline.ledger.decisions import approvals, gate_approved, undone, undone_counts
from billing_pipeline.ledger.events import recorded_events
from billing_pipeline.ledger.queries import days_at_gate
from billing_pipeline.operations.context import Context
from billing_pipeline.rules.day_inputs import (
    DayInputs,
    EventCounts,
    InputsDigest,
    Staleness,
    staleness,
)
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.gate import Finding, implausible
from billing_pipeline.rules.model import Formula, Meter, Usage
from billing_pipeline.rules.segments import Segment, segments_between
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from billing_pipeline.usage.activity import DAY_ERRORS
from billing_pipeline.usage.snapshot import Snapshot

VERIFIABLE = timedelta(days=41)
"""How long accepted events are verified: a week longer than anything can be reported."""

Boundaries = Mapping[str, set[int]]
"""Period boundaries inside a day, by organization (unix seconds)."""


@dataclass
class SpanInputs:
    """What all days of a span are planned from: meters, payers, period boundaries, recent days."""

    context: Context
    meters: Sequence[Meter]
    payers: Payers
    boundaries: Mapping[date, Boundaries]
    _usage: dict[date, dict[str, Usage] | None] = field(default_factory=dict)
    _snapshot_ids: dict[date, str | None] = field(default_factory=dict)

    @classmethod
    def read(cls, context: Context, meters: Sequence[Meter], days: Collection[date]) -> SpanInputs:
        """Look up payers and period boundaries, once for all days."""
        payers = context.payers()
        with context.ledger.reading() as connection:
            boundaries = period_boundaries(connection, meters, payers, days)
        return cls(context, meters, payers, boundaries)

    def boundaries_of(self, day: date) -> Boundaries:
        """The period boundaries inside a day, by organization."""
        return self.boundaries.get(day, {})

    def recent_days(self, day: date) -> list[date]:
        """The days that the gate compares a day with."""
        number = self.context.settings.billing_gates.recent_days
        return [day - timedelta(days=n) for n in range(1, number + 1)]

    def recent_usage(self, day: date) -> list[dict[str, Usage]]:
        """Usage by organization of the recent days that were counted, each read once.

        A day whose snapshot cannot be read is missing: that is its own error, not this day's.
        """
        for each in self.recent_days(day):
            if each not in self._usage:
                self._usage[each] = None
                with suppress(*DAY_ERRORS):
                    if (snapshot := self.context.usage.snapshot(each)) is not None:
                        self._usage[each] = usage_by_organization(snapshot)
        return [usage for each in self.recent_days(day) if (usage := self._usage[each]) is not None]

    def recent_snapshots(self, day: date) -> list[str | None]:
        """The ids of the recent days' snapshots."""
        for each in self.recent_days(day):
            if each not in self._snapshot_ids:
                self._snapshot_ids[each] = None
                with suppress(*DAY_ERRORS):
                    self._snapshot_ids[each] = self.context.usage.snapshot_id(each)
        return [self._snapshot_ids[each] for each in self.recent_days(day)]


def period_boundaries(
    connection: Connection, meters: Sequence[Meter], payers: Payers, days: Collection[date]
) -> dict[date, dict[str, set[int]]]:
    """The period boundaries inside these days, by organization (unix seconds).

    An organization has those of its customer today, and of every customer it was reported for.
    """
    by_day = payers.boundaries([meter.meter_id for meter in meters], days)
    reported = ledger_days.reported_to(connection, by_day)
    found: dict[date, dict[str, set[int]]] = {}
    for day, by_customer in by_day.items():
        here: dict[str, set[int]] = defaultdict(set)
        mapped = [(o, c) for c in by_customer for o in payers.sharing.get(c, ())]
        for organization, customer in (*mapped, *reported.get(day, ())):
            here[organization] |= by_customer[customer]
        found[day] = dict(here)
    return found


def read_segments(context: Context, day: date, boundaries: Boundaries) -> dict[str, list[Segment]]:
    """Count the segments of the organizations whose billing periods end inside this day.

    Only those that have ended. Raises DAY_ERRORS.
    """
    wanted: dict[str, list[tuple[int, int]]] = {}
    now, midnight = context.clock().timestamp(), day_start(day)
    for organization, instants in boundaries.items():
        ended = [(s, e) for s, e in segments_between(day, instants) if e <= now]
        if ended:
            wanted[organization] = [(s - midnight, e - midnight) for s, e in ended]
    if not wanted:
        return {}
    counted = context.usage.in_segments(day, wanted)
    return {
        organization: [
            Segment(midnight + start, midnight + end, Usage(active, volume))
            for (start, end), (active, volume) in zip(spans, counted[organization], strict=True)
        ]
        for organization, spans in wanted.items()
    }


def read_day_inputs(
    span: SpanInputs,
    connection: Connection,
    day: date,
    segments: Mapping[str, Sequence[Segment]],
    only: Collection[str] | None = None,
    *,
    judge: bool = True,
) -> tuple[DayInputs, Snapshot | None]:
    """Read what a day is planned from, in one transaction; and its snapshot.

    `segments` are counted before: reading files may take longer than a transaction should.
    Without `judge` the gate counts as open, for callers that plan nothing. Raises DAY_ERRORS.
    """
    context = span.context
    # Read here, not before: whoever planned before us may have planned from an older snapshot.
    snapshot = context.usage.snapshot(day)
    inputs = DayInputs(
        day,
        context.clock(),
        span.meters,
        None if snapshot is None else snapshot.snapshot_id,
        {} if snapshot is None else usage_by_organization(snapshot),
        segments,
        span.payers,
        recorded_events(connection, [day], only=only)[day],
        adjustment_entries_of(connection, [day])[day],
        judge_gate(span, connection, snapshot) if judge and snapshot is not None else (),
        () if snapshot is None else undone(connection, day, snapshot.snapshot_id),
        only,
    )
    return inputs, snapshot


def judge_gate(span: SpanInputs, connection: Connection, snapshot: Snapshot) -> list[Finding]:
    """What is implausible about a day's counts, unless a person approved them."""
    day = snapshot.usage_day
    if gate_approved(connection, day, snapshot.snapshot_id) is not None:
        return []
    usage, gates = usage_by_organization(snapshot), span.context.settings.billing_gates
    return implausible(usage, span.recent_usage(day), gates)


def usage_by_organization(snapshot: Snapshot) -> dict[str, Usage]:
    """A snapshot's counts, by organization."""
    return {
        o.organization_id: Usage(o.active_sensors, o.reading_volume) for o in snapshot.organizations
    }


# Up to date, or stale -------------------------------------------------------------------------


def read_digests(
    span: SpanInputs, connection: Connection, snapshots: Mapping[date, str]
) -> dict[date, InputsDigest]:
    """The digests of what these days, with these snapshots, would be planned from now."""
    counts = ledger_days.event_counts(connection, snapshots)
    adjustments = ledger_days.newest_adjustments(connection, snapshots)
    open_organizations = ledger_days.open_organizations(connection, snapshots)
    undone_cells = undone_counts(connection, snapshots)
    approved, at_gate = approvals(connection, snapshots), days_at_gate(connection)
    found = {}
    for day, snapshot_id in snapshots.items():
        events = counts.get(day, EventCounts())
        found[day] = InputsDigest(
            snapshot_id,
            _meters_digest(span.meters, has_refusals=events.rejected > 0),
            _boundaries_digest(span, day),
            span.payers.organizations_digest if _last_meters(span.meters) else "",
            _payers_digest(span.payers, day, open_organizations.get(day, {})),
            adjustments.get(day, 0),
            (day, snapshot_id) in approved,
            undone_cells.get(day, 0),
            _digest(span.recent_snapshots(day)) if day in at_gate else "",
            events,
        )
    return found


def read_staleness(
    span: SpanInputs, connection: Connection, snapshots: Mapping[date, str]
) -> dict[date, tuple[Staleness, InputsDigest]]:
    """What of these days has to be planned again, with the digests that tell."""
    before, now = ledger_days.planned_from(connection, snapshots), span.context.clock()
    found = {}
    for day, digest in read_digests(span, connection, snapshots).items():
        known = before.get(day)
        concerned: set[str] = set()
        if known is not None and known.digest != digest:
            concerned |= ledger_days.open_organizations(connection, [day]).get(day, {}).keys()
            concerned |= ledger_days.without_cell(
                connection, day, span.payers.customers, _last_meters(span.meters)
            )
        found[day] = staleness(known, digest, now, concerned), digest
    return found


def stale_days(context: Context) -> list[date]:
    """The days that planning again from their present snapshots could change."""
    today = context.clock().date()
    first = max(today - OLDEST_REPORTED, context.settings.billing_start_day)
    wanted = {first + timedelta(days=n) for n in range((today - first).days)}
    wanted |= context.ledger.read(ledger_days.days_to_look_at)
    snapshots = snapshots_of(context, wanted)
    span = SpanInputs.read(context, context.known_meters(), snapshots)
    return sorted(_stale_among(span, snapshots))


def stale_among(span: SpanInputs, days: Collection[date]) -> set[date]:
    """Those of these days with a whole snapshot that planning again could change."""
    return _stale_among(span, snapshots_of(span.context, days))


def snapshots_of(context: Context, days: Collection[date]) -> dict[date, str]:
    """The ids of the whole snapshots of these days; one that cannot be read is missing."""
    found = {}
    for day in sorted(days):
        with suppress(*DAY_ERRORS):  # it is counted again first
            if (snapshot_id := context.usage.snapshot_id(day)) is not None:
                found[day] = snapshot_id
    return found


def _stale_among(span: SpanInputs, snapshots: Mapping[date, str]) -> set[date]:
    with span.context.ledger.reading() as connection:
        found = read_staleness(span, connection, snapshots)
    return {day for day, (stale, _) in found.items() if stale.is_stale}


def unfinished_days(context: Context) -> list[date]:
    """The days that a new run would bring further: stale, unresolved or not verified yet."""
    today = context.clock().date()
    unverified = context.ledger.read(ledger_days.unverified_days, today - VERIFIABLE)
    unresolved = context.ledger.read(ledger_days.unresolved_days)
    return sorted({*stale_days(context), *unverified, *unresolved})


def _last_meters(meters: Sequence[Meter]) -> list[str]:
    """The meters that are reported zeros first."""
    return [meter.event_name for meter in meters if meter.formula is Formula.LAST]


def _meters_digest(meters: Sequence[Meter], *, has_refusals: bool) -> str:
    """The meters; when Stripe changed them matters only where it refused something."""
    return _digest(
        [
            (m.event_name, m.meter_id, m.formula, m.measure, m.event_time_window,
             m.changed_at if has_refusals else None)
            for m in sorted(meters, key=lambda m: m.event_name)
        ]
    )  # fmt: skip


def _boundaries_digest(span: SpanInputs, day: date) -> str:
    """Period boundaries. A segment's active sensors also depend on the day before the window."""
    boundaries = span.boundaries_of(day)
    if not boundaries:
        return ""
    before = span.context.usage.before_window(day)
    return _digest([before, {o: sorted(instants) for o, instants in sorted(boundaries.items())}])


def _payers_digest(payers: Payers, day: date, organizations: Mapping[str, set[str]]) -> str:
    """Customers and eligibility of organizations with usage on hold or refused."""
    if not organizations:
        return ""
    span = day_start(day), day_end(day)
    content = []
    for organization, reported in sorted(organizations.items()):
        customer = payers.customers.get(organization)
        known = [
            (each, payers.eligibility_of(each).between(*span))
            for each in sorted(reported | ({customer} if customer else set()))
        ]
        sharing = payers.sharing.get(customer or "", [])
        content.append((organization, customer, organization in payers.undecided, known, sharing))
    return _digest(content)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
