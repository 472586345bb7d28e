"""The oracle: what must be true of a world whose faults have ended, whatever happened before.

It derives the bill a second time, from the readings and from Stripe's own state. Where the ledger
differs, it must give a reason, and the world must confirm that reason.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import combinations
from typing import Any

from sqlalchemy import select

from billing_pipeline.customers.tables import invoices, subscriptions
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.adjustments import adjustment_entries_of, decided_adjustments
from billing_pipeline.ledger.events import recorded_events
from billing_pipeline.ledger.queries import HoldRecord
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.day_inputs import (
    SpanInputs,
    read_day_inputs,
    read_segments,
    snapshots_of,
    stale_among,
    unfinished_days,
)
from billing_pipeline.operations.gate import closed_gates
from billing_pipeline.operations.periods import unbilled
from billing_pipeline.operations.reconcile.month import reconcile_month
from billing_pipeline.rules.adjustments import Entry
from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.model import NOT_COUNTED, SENT, UNRESOLVED, Cell, RecordedEvent
from billing_pipeline.rules.planning import plan
from billing_pipeline.rules.segments import segments_between
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.sandbox.stripe_state import ReceivedEvent
from billing_pipeline.simulation.world import (
    METERS,
    ORGANIZATIONS,
    PERIOD_DAYS,
    STRICT,
    UNKNOWN_STATUS,
    World,
)
from billing_pipeline.stripe_events.inbox import EventState
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from webhook_handler.tables import stripe_events

LAST, SUM = "active_sensors", "temperature_readings"


def complaints(world: World) -> list[str]:
    """Everything that is wrong at the end of a history; empty if it ended right."""
    context = world.context("oracle")
    return [
        *_no_event_counts_twice(world),
        *_ledger_and_stripe_agree(world, context),
        *_cells_are_right(world, context),
        *_invoices_are_right(world, context),
        *_closed_periods_get_no_usage(world, context),
        *_reconciliation_finds_causes(world, context),
        *_decisions_are_on_record(world, context),
        *_no_amount_waits_behind_the_gate(context),
        *_read_model_is_current(world),
        *_mismatches_are_real(world, context),
        *_nothing_is_unfinished(world, context),
        *up_to_date_days_need_nothing(world, context),
        *world.complaints,
    ]


def up_to_date_days_need_nothing(world: World, context: Context) -> Iterator[str]:
    """Planning a day that is called up to date yields no event, and the holds on record."""
    span = SpanInputs.read(context, context.known_meters(), world.days())
    stale = stale_among(span, world.days())
    for day in sorted(set(snapshots_of(context, world.days())) - stale):
        segments = read_segments(context, day, span.boundaries_of(day))
        with context.ledger.reading() as connection:
            inputs, _ = read_day_inputs(span, connection, day, segments)
            on_hold = {
                (h.cell, h.start, h.value, h.reason)
                for h in queries.holds_of(connection, [day], zeros=True)
            }
        planned = plan(inputs)
        if planned.why_not is not None:
            continue  # the readings have changed: the day is counted again first
        if planned.events or planned.superseded:
            yield f"{day} is called up to date, but its plan is {planned}"
        if {(h.cell, h.start, h.value, str(h.reason)) for h in planned.holds} != on_hold:
            yield f"{day} is called up to date, but its plan holds {planned.holds}, not {on_hold}"


def _counted(world: World) -> list[ReceivedEvent]:
    """The events that count at Stripe."""
    return [e for e in world.account.events if e.counted and not e.cancelled]


def _mismatches(context: Context) -> list[dict[str, Any]]:
    return context.ledger.read(queries.checks, None, "mismatch")


def _mismatched(context: Context) -> set[tuple[str, str]]:
    """Customer and meter of each mismatch."""
    return {(row["customer"], row["event_name"]) for row in _mismatches(context)}


def _no_event_counts_twice(world: World) -> Iterator[str]:
    for identifier, number in Counter(e.identifier for e in _counted(world)).items():
        if number > 1:
            yield f"billed twice: {identifier} counts {number} times"


def _ledger_and_stripe_agree(world: World, context: Context) -> Iterator[str]:
    """Stripe counts the events that the ledger calls sent, as they were sent, and no others."""
    mismatches = {(r["customer"], r["event_name"], r["usage_day"]) for r in _mismatches(context)}
    counted = {e.identifier: e for e in _counted(world)}
    known: set[str] = set()
    for day in (*world.days(), world.clock().date()):  # segments of today may be reported
        for organization in ORGANIZATIONS:
            for meter, _ in METERS:
                story = context.ledger.read(queries.story, Cell(day, organization, meter))
                for row in story.events:
                    known.add(row["identifier"])
                    event = counted.get(row["identifier"])
                    message = f"{organization} {day} {meter} r{row['revision']} {row['value']:+}"
                    if (
                        (row["state"] in SENT) != (event is not None)
                        and (row["customer"], meter, row["day"]) not in mismatches
                        and not _may_differ(world, row, story.events, counted.values())
                    ):
                        yield f"{message}: {row['state']} here, counted there: {event is not None}"
                    if event is not None and (
                        (event.customer, event.value, event.timestamp)
                        != (row["customer"], row["value"], row["timestamp"])
                        or not day_start(day) <= event.timestamp < day_end(day)
                    ):
                        yield f"{message}: Stripe has something else: {event}"
                    if (organization, row["customer"]) not in world.ever_mapped:
                        yield f"{message}: reported for {row['customer']}, never its customer"
    for identifier in sorted(counted.keys() - known):
        yield f"Stripe counts {identifier}, which the ledger does not know"


def _may_differ(
    world: World,
    row: dict[str, Any],
    events: list[dict[str, Any]],
    counted: Iterable[ReceivedEvent],
) -> bool:
    """Whether the bill is right although ledger and Stripe may disagree about an event.

    Where newer values replace older ones, an event may be reported again although its loss is not
    certain. The usage of a deleted customer is on no bill.
    """
    if row["customer"] not in world.account.customers:
        return True
    return row["meter"] == LAST and (
        row["error_code"] == NOT_COUNTED
        or _is_replaced(row, events)
        or _makes_no_difference(row, counted)
    )


def _makes_no_difference(row: dict[str, Any], counted: Iterable[ReceivedEvent]) -> bool:
    """Whether its customer has this value at that instant anyway, in this segment."""
    before = [
        event
        for event in counted
        if (event.customer, event.event_name) == (row["customer"], row["meter"])
        and event.timestamp < row["timestamp"]
    ]
    newest = max(before, key=lambda event: event.timestamp, default=None)
    if newest is None or newest.value != row["value"]:
        return bool(row["value"] == 0 and newest is None)
    start = row["segment_start"] or day_start(date.fromisoformat(row["day"]))
    return bool(row["value"] == 0 or newest.timestamp >= start)


def _is_replaced(row: dict[str, Any], events: list[dict[str, Any]]) -> bool:
    """Whether a later report about the same segment replaces an event."""
    return any(
        later["state"] in SENT
        and later["revision"] > row["revision"]
        and later["segment_start"] == row["segment_start"]
        for later in events
    )


@dataclass(frozen=True)
class _Day:
    """What the ledger has of one usage day, and the world that it is compared with."""

    world: World
    context: Context
    recorded: Mapping[Cell, list[RecordedEvent]]
    adjustments: Mapping[Cell, Sequence[Entry]]
    holds: Mapping[Cell, list[HoldRecord]]
    refused: set[tuple[str, str, str]]
    """(day, organization, meter) of every refused report, of all days."""


def _cells_are_right(world: World, context: Context) -> Iterator[str]:
    """Each segment of a day is reported as the readings prove, or the ledger has the reason."""
    refused = {
        (r["day"], r["organization_id"], r["meter"]) for r in context.ledger.read(queries.rejected)
    }
    for usage_day in world.days():
        recorded = context.ledger.read(recorded_events, [usage_day])[usage_day]
        adjustments = context.ledger.read(adjustment_entries_of, [usage_day])[usage_day]
        holds = defaultdict(list)
        for hold in context.ledger.read(queries.holds_of, [usage_day]):
            holds[hold.cell].append(hold)
        day = _Day(world, context, recorded, adjustments, holds, refused)
        for organization in ORGANIZATIONS:
            cells = [(Cell(usage_day, organization, meter), formula) for meter, formula in METERS]
            # The customers of all meters divide the day of an organization.
            events = [event for cell, _ in cells for event in recorded.get(cell, [])]
            segments = segments_between(usage_day, _boundaries(world, organization, events))
            for cell, formula in cells:
                for start, end in segments:
                    yield from _segment_is_right(day, cell, formula, start, end)


def _segment_is_right(day: _Day, cell: Cell, formula: str, start: int, end: int) -> Iterator[str]:
    world, organization = day.world, cell.organization_id
    history = day.recorded.get(cell, [])
    sent = [s for s in history if s.state in SENT and start <= s.timestamp < end]
    recorded = _recorded_value(sent, formula)
    adjusted = sum(e.amount for e in day.adjustments.get(cell, ()) if start <= e.at < end)
    proven = (
        world.readings.active(organization, end)
        if formula == "last"
        else world.readings.volume(organization, start, end)
    )
    message = (
        f"{organization} {cell.usage_day} {cell.event_name} [{start}, {end}): "
        f"{recorded} of {proven}{adjusted:+}"
    )
    holds = [h for h in day.holds.get(cell, []) if h.start in (0, start)]
    for hold in holds:
        if hold.reason == HoldReason.BELOW_ZERO:
            confirmed = formula == "sum" and proven + adjusted < 0
        else:
            confirmed = _is_confirmed(day, hold, history, start, end)
        if not confirmed:
            yield f"{message}: on hold as {hold.reason}, which is not so"
    target = proven + adjusted if formula == "sum" else proven
    owed = target if formula == "last" else target - (recorded or 0)
    if recorded is None and target == 0 and formula == "last":
        if _owes_a_zero(day, cell, start):
            yield f"{message}: the zero was not reported"
        return
    if (
        (recorded or 0) == target
        or any(hold.value == owed for hold in holds)
        or (cell.usage_day.isoformat(), organization, cell.event_name) in day.refused
    ):
        return
    if formula == "last":
        if recorded is None and _is_too_old_and_empty(world, cell, end):
            return
        if adjusted and (recorded or 0) == target + adjusted:
            return  # written off
    reasons = [(h.start, h.value, h.reason) for h in day.holds.get(cell, [])]
    yield f"{message}, and no reason is given; on hold: {reasons}"


def _is_too_old_and_empty(world: World, cell: Cell, end: int) -> bool:
    """Whether Stripe accepts nothing for this segment any more, and its day has no readings.

    Only readings of the day before make such a segment active. They are checked with that day.
    """
    start = day_start(cell.usage_day)
    empty = world.readings.volume(cell.organization_id, start, day_end(cell.usage_day)) == 0
    return empty and end <= world.now - OLDEST_REPORTED.total_seconds()


def _owes_a_zero(day: _Day, cell: Cell, start: int) -> bool:
    """Whether nothing can be the reason not to report a zero. Knows only the simplest case."""
    world, mapping = day.world, day.context.customers.mapping()
    customer = mapping.get(cell.organization_id)
    return (
        customer in world.account.customers
        and not day.recorded.get(cell)
        and list(mapping.values()).count(customer) == 1
        and all(s.customer != customer for history in day.recorded.values() for s in history)
        and all(s["customer"] != customer for s in world.sandbox.billing.subscriptions.values())
        and world.settings.billing_gates != STRICT
        and start > world.now - OLDEST_REPORTED.total_seconds()
        and not day.refused
    )


def _is_confirmed(
    day: _Day, hold: HoldRecord, history: list[RecordedEvent], start: int, end: int
) -> bool:
    """Whether the world confirms the reason of a hold."""
    world, organization = day.world, hold.cell.organization_id
    mapping = day.context.customers.mapping()
    kept = [s.customer for s in history if s.state != "rejected" or s.error_code == NOT_COUNTED]
    customer = kept[0] if kept else mapping.get(organization)
    subscriptions = [
        s for s in world.sandbox.billing.subscriptions.values() if s["customer"] == customer
    ]
    confirmed = {
        HoldReason.NO_CUSTOMER: customer is None,
        HoldReason.CUSTOMER_UNDECIDED: organization not in mapping,
        HoldReason.CUSTOMER_SHARED: True,  # with whom depends on each meter's days
        HoldReason.CUSTOMER_DELETED: customer not in world.account.customers,
        HoldReason.SUBSCRIPTION_INACTIVE: any(s["status"] == "paused" for s in subscriptions),
        HoldReason.SUBSCRIPTION_UNKNOWN: any(
            s["status"] == UNKNOWN_STATUS for s in subscriptions
        ),
        HoldReason.SUBSCRIPTION_ENDED: any(
            (s["ended_at"] or s["cancel_at"] or 2**62) <= end for s in subscriptions
        ),
        HoldReason.PERIOD_CLOSED: any(
            i["status"] != "draft" and i["customer"] == customer
            and i["period_start"] < end and start < i["period_end"]
            for i in world.sandbox.billing.invoices.values()
        ),
        HoldReason.TOO_OLD: start < world.now - OLDEST_REPORTED.total_seconds(),
        HoldReason.NO_ROOM_IN_DAY: True,
        HoldReason.UNDONE: any(name.startswith("undo ") for name in world.runs),
        HoldReason.DAY_NOT_OVER: False,
        HoldReason.GATE_CLOSED: world.settings.billing_gates == STRICT and bool(
            closed_gates(day.context, [hold.cell.usage_day])
        ),
    }  # fmt: skip
    return confirmed.get(HoldReason(hold.reason), False)


def _invoices_are_right(world: World, context: Context) -> Iterator[str]:
    """Each final invoice bills its period as the ledger has it, less the usage shown as late."""
    late = {(row["identifier"], row["invoice"]): row["certain"] for row in unbilled(context)}
    counted = {e.identifier for e in _counted(world)}
    rows = [
        row
        for day in world.days()
        for organization in ORGANIZATIONS
        for meter, _ in METERS
        for row in context.ledger.read(queries.story, Cell(day, organization, meter)).events
        if row["state"] in SENT
        # Stripe counts it, and it passes for not counted because the figure is the same.
        or (meter == LAST and row["error_code"] == NOT_COUNTED and row["identifier"] in counted)
    ]
    mismatched = _mismatched(context)
    lines = [
        (invoice, line["metadata"]["event_name"], line["quantity"])
        for invoice in world.sandbox.billing.invoices.values()
        for line in invoice["lines"]["data"]
    ]
    for invoice, meter, billed in lines:
        customer, start = invoice["customer"], invoice["period_start"]
        inside = [
            row
            for row in rows
            if (row["customer"], row["meter"]) == (customer, meter)
            and start <= row["timestamp"] < invoice["period_end"]
            and not late.get((row["identifier"], invoice["id"]))
        ]
        perhaps_late = [row for row in inside if (row["identifier"], invoice["id"]) in late]
        possible = {
            _period_total(meter, [row for row in inside if row not in absent])
            for number in range(len(perhaps_late) + 1)
            for absent in combinations(perhaps_late, number)
        }
        if billed not in possible and (customer, meter) not in mismatched:
            yield f"invoice {invoice['id']} bills {billed} {meter}, the ledger has {possible}"


def _closed_periods_get_no_usage(world: World, context: Context) -> Iterator[str]:
    """After the event of a final invoice is applied, nothing more is sent for its period."""
    known: dict[str, datetime] = {}
    with world.database.begin() as connection:
        for row in connection.execute(
            select(stripe_events.c.payload, stripe_events.c.processed_at).where(
                stripe_events.c.type == "invoice.finalized",
                stripe_events.c.state == EventState.PROCESSED,
            )
        ):
            invoice = str(json.loads(row.payload)["data"]["object"]["id"])
            known[invoice] = min(row.processed_at, known.get(invoice, row.processed_at))
    owned = Counter(s["customer"] for s in world.sandbox.billing.subscriptions.values())
    for event in unbilled(context):
        if owned[event["customer"]] > 1:
            continue  # a period of another subscription may still be open
        since = known.get(event["invoice"])
        if since is not None and datetime.fromisoformat(event["first_attempt_at"]) > since:
            yield f"{event['identifier']} was first sent after {event['invoice']} was final"


def _period_total(meter: str, rows: Sequence[dict[str, Any]]) -> int:
    """What a period with these events bills."""
    if meter == SUM:
        return max(0, sum(int(row["value"]) for row in rows))
    latest = max(rows, key=lambda row: int(row["timestamp"]), default={"value": 0})
    value: int = latest["value"]
    return value


def _reconciliation_finds_causes(world: World, context: Context) -> Iterator[str]:
    """The reconciliation of each month finds figures that agree, or the cause of a difference."""
    mismatched = _mismatched(context)
    unknown = {customer for _, customer in world.ever_mapped} - set(world.account.customers)
    for month in sorted({day.replace(day=1) for day in world.days()}):
        found = reconcile_month(context, month)
        for row in found.rows:
            if not row.is_right and (row.period.customer, row.meter) not in mismatched:
                yield f"{month:%Y-%m} reconciled: {row.as_json()}"
        for problem in found.problems:
            if not problem.endswith(tuple(f"customer: '{customer}'" for customer in unknown)):
                yield f"{month:%Y-%m} reconciled: {problem}"


def _no_amount_waits_behind_the_gate(context: Context) -> Iterator[str]:
    """No person has to decide about an amount that the gate calls implausible."""
    for hold in context.ledger.read(queries.holds_to_decide):
        for gate in closed_gates(context, [hold.cell.usage_day]):
            names = {finding.organization_id for finding in gate.findings}
            if names & {None, hold.cell.organization_id}:
                yield f"{hold.cell} waits for a decision, and its gate is closed: {gate.findings}"


def _decisions_are_on_record(world: World, context: Context) -> Iterator[str]:
    """The ledger has exactly the decisions that people made, with all of each amount."""
    decided = context.ledger.read(decided_adjustments)
    if {each.id: each.approved for each in decided} != world.verdicts:
        yield f"decided were {world.verdicts}, on record are {decided}"
    entries = context.ledger.read(
        adjustment_entries_of,
        list(set(world.days()) | {e.cell.usage_day for d in decided for e in d.entries}),
    )
    dismissed = sum(each.amount for each in decided if not each.approved)
    left = sum(e.amount for cells in entries.values() for found in cells.values() for e in found)
    if left != -dismissed:
        yield f"adjustments add up to {left}, and {dismissed} were written off"
    for each in decided:
        reported = sum(entry.amount for entry in each.entries)
        if reported != (each.amount if each.approved else 0):
            yield f"{each.id}: {each.amount} were decided, {reported} are in the current period"


def _read_model_is_current(world: World) -> Iterator[str]:
    """Each subscription and invoice has its status at Stripe, whatever the order of events."""
    billing = world.sandbox.billing
    with world.database.begin() as connection:
        for table, objects in (
            (subscriptions, billing.subscriptions),
            (invoices, billing.invoices),
        ):
            id = next(iter(table.primary_key.columns))
            known = {
                row[id.name]: row["status"] for row in connection.execute(select(table)).mappings()
            }
            for name, there in objects.items():
                if known.get(name) != there["status"]:
                    yield f"{name} is {there['status']}, and known as {known.get(name)}"


def _mismatches_are_real(world: World, context: Context) -> Iterator[str]:
    """A mismatch remains only where Stripe lost an event, or where the customer is deleted."""
    lost = {(e.customer, e.event_name) for e in world.account.events if not e.counted}
    for check in _mismatches(context):
        customer = check["customer"]
        if (customer, check["event_name"]) not in lost and customer in world.account.customers:
            yield f"a mismatch without a cause: {check}"


def _nothing_is_unfinished(world: World, context: Context) -> Iterator[str]:
    """Every event is resolved, verified and applied, and no sensor asks for another run."""
    counts = context.ledger.read(queries.counts, world.days())
    for state in sorted(UNRESOLVED):
        if counts[state]:
            yield f"{counts[state]} events are still {state}"
    has_mismatches = bool(_mismatches(context))
    if counts["accepted"] and not has_mismatches:
        yield f"{counts['accepted']} events are accepted, not verified, and there is no mismatch"
    events = context.inbox.counts()
    if events["received"] or events["failed"]:
        yield f"Stripe events are not applied: {events}: {context.inbox.records(limit=3)}"
    unfinished = unfinished_days(context)
    if unfinished and not has_mismatches:
        yield f"the sensor would run {unfinished} forever"


def _recorded_value(events: list[RecordedEvent], formula: str) -> int | None:
    if not events:
        return None
    if formula == "sum":
        return sum(event.value for event in events)
    return max(events, key=lambda event: event.revision).value


def _boundaries(world: World, organization: str, events: list[RecordedEvent]) -> set[int]:
    """The period boundaries of an organization by Stripe's own objects."""
    mapped = world.context("oracle").customers.mapping()
    customers = {event.customer for event in events} | {mapped.get(organization)}
    boundaries: set[int] = set()
    for subscription in world.sandbox.billing.subscriptions.values():
        if subscription["customer"] in customers:
            for name in ("ended_at", "cancel_at"):
                boundaries |= {subscription[name]} - {None}
            for item in subscription["items"]["data"]:
                start, end = subscription["start_date"], item["current_period_end"]
                boundaries |= set(range(start, end + 1, PERIOD_DAYS * 86_400))
    for invoice in world.sandbox.billing.invoices.values():
        if invoice["customer"] in customers:
            boundaries |= {invoice["period_start"], invoice["period_end"]}
    return boundaries
