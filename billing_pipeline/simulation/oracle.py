"""The second derivation: what must be true of a quiet world, whatever happened before.

From the readings, from Stripe's own state, and from what the ledger shows; where these differ,
the difference must be in the ledger with a reason that the world bears out.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from billing_pipeline.rules.holds import HoldReason
from billing_pipeline.rules.model import (
    NOT_COUNTED,
    SENT,
    Cell,
    RecordedEvent,
)
from billing_pipeline.rules.planning import plan
from billing_pipeline.rules.segments import segments_between
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.sandbox.stripe_state import ReceivedEvent
from billing_pipeline.simulation.world import METERS, ORGANIZATIONS, STRICT, World
from billing_pipeline.stripe_events.inbox import EventState
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from webhook_handler.tables import stripe_events

LAST, SUM = "active_sensors", "temperature_readings"


def complaints(world: World) -> list[str]:
    """Everything that is wrong with a quiet world; empty when nothing is."""
    context = world.context("oracle")
    return [
        *_counted_once(world),
        *_ledger_and_stripe_agree(world, context),
        *_cells_are_right(world, context),
        *_invoices_are_right(world, context),
        *_closed_stays_closed(world, context),
        *_every_difference_has_a_cause(world, context),
        *_decisions_are_kept(world, context),
        *_no_amount_waits_behind_the_gate(context),
        *_what_stripe_said_is_known(world),
        *_mismatches_are_stripes_doing(world, context),
        *_nothing_is_left(world, context),
        *up_to_date_days_need_nothing(world, context),
        *world.complaints,
    ]


def up_to_date_days_need_nothing(world: World, context: Context) -> Iterator[str]:
    """Planning a day that is called up to date yields no event, and the holds that there are."""
    span = SpanInputs.read(context, context.known_meters(), world.days())
    stale = stale_among(span, world.days())
    for day in sorted(set(snapshots_of(context, world.days())) - stale):
        segments = read_segments(context, day, span.boundaries_of(day))
        with context.ledger.reading() as connection:
            inputs, _ = read_day_inputs(span, connection, day, segments)
            held = {
                (h.cell, h.start, h.value, h.reason)
                for h in queries.holds_of(connection, [day], zeros=True)
            }
        planned = plan(inputs)
        if planned.why_not is not None:
            continue  # its readings have changed: it is counted again first
        if planned.events or planned.superseded:
            yield f"{day} is called up to date, and would plan {planned}"
        if {(h.cell, h.start, h.value, str(h.reason)) for h in planned.holds} != held:
            yield f"{day} is called up to date, and would hold {planned.holds}, not {held}"


def _counted_once(world: World) -> Iterator[str]:
    counted = [e for e in world.account.events if e.counted and not e.cancelled]
    for identifier, number in Counter(e.identifier for e in counted).items():
        if number > 1:
            yield f"billed twice: {identifier} counts {number} times"


def _ledger_and_stripe_agree(world: World, context: Context) -> Iterator[str]:
    """Each counted event is one of ours, as we said it; each we take for counted is."""
    flagged = {
        (r["customer"], r["event_name"], r["usage_day"])
        for r in context.ledger.read(queries.checks, None, "mismatch")
    }
    counted = {e.identifier: e for e in world.account.events if e.counted and not e.cancelled}
    ours: dict[str, object] = {}
    for day in (*world.days(), world.clock().date()):  # parts of today may be reported
        for organization in _organizations(world):
            for meter, _ in METERS:
                story = context.ledger.read(queries.story, _cell(day, organization, meter))
                for row in story.events:
                    ours[row["identifier"]] = row
                    where = (row["customer"], meter, row["day"])
                    sent = row["state"] in SENT
                    event = counted.get(row["identifier"])
                    message = f"{organization} {day} {meter} r{row['revision']} {row['value']:+}"
                    # Where newer values replace older ones, an event may be reported again whose
                    # absence is not certain: the figure is right either way.
                    # And what a deleted customer has is on no bill.
                    doubtful = meter == LAST and (
                        row["error_code"] == NOT_COUNTED or _is_covered(row, story.events)
                    )
                    doubtful |= row["customer"] not in world.account.customers
                    doubtful |= meter == LAST and _makes_no_difference(row, counted.values())
                    if sent != (event is not None) and where not in flagged and not doubtful:
                        yield f"{message}: {row['state']} here, counted there: {event is not None}"
                    if event is not None and (
                        (event.customer, event.value, event.timestamp)
                        != (row["customer"], row["value"], row["timestamp"])
                        or not day_start(day) <= event.timestamp < day_end(day)
                    ):
                        yield f"{message}: Stripe has something else: {event}"
                    if (organization, row["customer"]) not in world.ever_mapped:
                        yield f"{message}: reported for {row['customer']}, never its customer"
    for identifier in counted.keys() - ours.keys():
        yield f"Stripe counts {identifier}, which the ledger does not know"


def _makes_no_difference(row: dict[str, Any], counted: Iterable[ReceivedEvent]) -> bool:
    """Whether its customer has this value at that instant anyway, in this part of the day."""
    before = [
        event
        for event in counted
        if (event.customer, event.event_name) == (row["customer"], row["meter"])
        and event.timestamp < row["timestamp"]
    ]
    newest = max(before, key=lambda event: event.timestamp, default=None)
    if newest is None or newest.value != row["value"]:
        return bool(row["value"] == 0 and newest is None)
    begun = row["segment_start"] or day_start(date.fromisoformat(row["day"]))
    return bool(row["value"] == 0 or newest.timestamp >= begun)


def _is_covered(row: dict[str, Any], events: list[dict[str, Any]]) -> bool:
    """Whether a later report about the same part of its day has taken an event's place."""
    return any(
        later["state"] in SENT
        and later["revision"] > row["revision"]
        and later["segment_start"] == row["segment_start"]
        for later in events
    )


def _cells_are_right(world: World, context: Context) -> Iterator[str]:
    """Each part of each day is reported as the readings prove, or held or refused for a reason."""
    refused = {
        (r["day"], r["organization_id"], r["meter"]) for r in context.ledger.read(queries.rejected)
    }
    for day in world.days():
        recorded = context.ledger.read(recorded_events, [day])[day]
        adjustments = context.ledger.read(adjustment_entries_of, [day])[day]
        held = defaultdict(list)
        for each in context.ledger.read(queries.holds_of, [day]):
            held[each.cell].append(each)
        for organization in _organizations(world):
            # A day is cut for an organization, wherever any of its meters is reported.
            ever = [s for m, _ in METERS for s in recorded.get(_cell(day, organization, m), [])]
            segments = segments_between(day, _cuts(world, organization, ever))
            for meter, formula in METERS:
                cell = _cell(day, organization, meter)
                history = recorded.get(cell, [])
                for start, end in segments:
                    truth = (
                        world.readings.active(organization, end)
                        if formula == "last"
                        else world.readings.volume(organization, start, end)
                    )
                    inside = [s for s in history if s.state in SENT and start <= s.timestamp < end]
                    still_valid = _recorded_total(inside, formula)
                    adjusted = sum(
                        e.amount for e in adjustments.get(cell, ()) if start <= e.at < end
                    )
                    message = (
                        f"{organization} {day} {meter} [{start}, {end}): "
                        f"{still_valid} of {truth}{adjusted:+}"
                    )
                    holds = [h for h in held[cell] if h.start in (0, start)]
                    for hold in holds:
                        so = _is_so(world, context, hold, history, start, end)
                        if hold.reason == HoldReason.BELOW_ZERO:
                            so = formula == "sum" and truth + adjusted < 0
                        if not so:
                            yield f"{message}: held as {hold.reason}, which is not so"
                    if formula == "sum":
                        truth += adjusted
                    owed = truth if formula == "last" else truth - (still_valid or 0)
                    if still_valid is None and truth == 0 and formula == "last":
                        if _owes_a_zero(world, context, cell, recorded, start):
                            yield f"{message}: the zero was not reported"
                        continue
                    if still_valid == truth or (still_valid is None and truth == 0):
                        continue
                    if (
                        formula == "last"
                        and still_valid is None
                        and _is_over_and_bare(world, cell, end)
                    ):
                        continue
                    if formula == "last" and adjusted and (still_valid or 0) == truth + adjusted:
                        continue  # written off
                    if any(hold.value == owed for hold in holds):
                        continue
                    if (day.isoformat(), organization, meter) in refused:
                        continue
                    reasons = [(h.start, h.value, h.reason) for h in held[cell]]
                    yield f"{message}, and no reason is given; held: {reasons}"


def _is_over_and_bare(world: World, cell: Cell, end: int) -> bool:
    """Whether Stripe takes nothing for this part any more, and its day has no readings.

    Such a part is active by the readings of the day before, and is seen with that day.
    """
    start = day_start(cell.usage_day)
    nothing = world.readings.volume(cell.organization_id, start, day_end(cell.usage_day)) == 0
    return nothing and end <= world.now - OLDEST_REPORTED.total_seconds()


def _owes_a_zero(
    world: World,
    context: Context,
    cell: Cell,
    recorded: Mapping[Cell, list[RecordedEvent]],
    start: int,
) -> bool:
    """Whether nothing at all stands in the way of reporting a zero: the plain cases only."""
    mapping = context.customers.mapping()
    customer = mapping.get(cell.organization_id)
    return (
        customer in world.account.customers
        and not recorded.get(cell)
        and list(mapping.values()).count(customer) == 1
        and all(s.customer != customer for history in recorded.values() for s in history)
        and all(s["customer"] != customer for s in world.sandbox.billing.subscriptions.values())
        and world.settings.billing_gates != STRICT
        and start > world.now - OLDEST_REPORTED.total_seconds()
        and not context.ledger.read(queries.rejected)
    )


def _is_so(
    world: World,
    context: Context,
    hold: HoldRecord,
    history: list[RecordedEvent],
    start: int,
    end: int,
) -> bool:
    """Whether the world bears out the reason of a hold."""
    organization = hold.cell.organization_id
    mapping = context.customers.mapping()
    kept = [s.customer for s in history if s.state != "rejected" or s.error_code == NOT_COUNTED]
    customer = kept[0] if kept else mapping.get(organization)
    subscriptions = [
        s for s in world.sandbox.billing.subscriptions.values() if s["customer"] == customer
    ]
    known = set(world.account.customers)
    true = {
        HoldReason.NO_CUSTOMER: customer is None,
        HoldReason.CUSTOMER_UNDECIDED: organization not in mapping,
        HoldReason.CUSTOMER_SHARED: True,  # whom else is a matter of each meter's days
        HoldReason.CUSTOMER_DELETED: customer not in known,
        HoldReason.SUBSCRIPTION_INACTIVE: any(s["status"] == "paused" for s in subscriptions),
        HoldReason.SUBSCRIPTION_UNKNOWN: any(s["status"] == "resting" for s in subscriptions),
        HoldReason.SUBSCRIPTION_ENDED: any(
            (s["ended_at"] or s["cancel_at"] or 2**62) <= end for s in subscriptions
        ),
        HoldReason.PERIOD_CLOSED: any(
            i["status"] not in ("draft",) and i["customer"] == customer
            and i["period_start"] < end and start < i["period_end"]
            for i in world.sandbox.billing.invoices.values()
        ),
        HoldReason.TOO_OLD: start < world.now - OLDEST_REPORTED.total_seconds(),
        HoldReason.NO_ROOM_IN_DAY: True,
        HoldReason.UNDONE: any(name.startswith("undo ") for name in world.runs),
        HoldReason.DAY_NOT_OVER: False,
        HoldReason.GATE_CLOSED: world.settings.billing_gates == STRICT and bool(
            closed_gates(context, [hold.cell.usage_day])
        ),
    }  # fmt: skip
    return true.get(HoldReason(hold.reason), False)


def _invoices_are_right(world: World, context: Context) -> Iterator[str]:
    """Each final invoice bills what the ledger says of its period, less what is shown as late."""
    late = {(row["identifier"], row["invoice"]): row["certain"] for row in unbilled(context)}
    counted = {e.identifier for e in world.account.events if e.counted and not e.cancelled}
    rows = [
        row
        for day in world.days()
        for organization in _organizations(world)
        for meter, _ in METERS
        for row in context.ledger.read(queries.story, _cell(day, organization, meter)).events
        if row["state"] in SENT
        # Taken for never counted because it made no difference to the figure.
        or (meter == LAST and row["error_code"] == NOT_COUNTED and row["identifier"] in counted)
    ]
    flagged = {
        (r["customer"], r["event_name"])
        for r in context.ledger.read(queries.checks, None, "mismatch")
    }
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
        perhaps = [row for row in inside if (row["identifier"], invoice["id"]) in late]
        ours = {
            _total(meter, [row for row in inside if row not in left_out])
            for number in range(len(perhaps) + 1)
            for left_out in combinations(perhaps, number)
        }
        if billed not in ours and (customer, meter) not in flagged:
            yield f"invoice {invoice['id']} bills {billed} {meter}, the ledger says {ours}"


def _closed_stays_closed(world: World, context: Context) -> Iterator[str]:
    """Once the news of a final invoice is applied, nothing more is sent for its period."""
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
            continue  # a period of another subscription may be open still
        since = known.get(event["invoice"])
        if since is not None and datetime.fromisoformat(event["first_attempt_at"]) > since:
            message = f"{event['identifier']} was first sent after {event['invoice']}"
            yield f"{message} was known as final"


def _total(meter: str, rows: Sequence[dict[str, Any]]) -> int:
    """What a period with these events bills."""
    if meter == SUM:
        return max(0, sum(int(row["value"]) for row in rows))
    latest = max(rows, key=lambda row: int(row["timestamp"]), default={"value": 0})
    value: int = latest["value"]
    return value


def _every_difference_has_a_cause(world: World, context: Context) -> Iterator[str]:
    """The reconciliation of each month finds the same: figures that agree, or why they do not."""
    flagged = {
        (r["customer"], r["event_name"])
        for r in context.ledger.read(queries.checks, None, "mismatch")
    }
    strangers = {customer for _, customer in world.ever_mapped} - set(world.account.customers)
    for month in sorted({day.replace(day=1) for day in world.days()}):
        found = reconcile_month(context, month)
        for row in found.rows:
            if not row.is_right and (row.period.customer, row.meter) not in flagged:
                yield f"{month:%Y-%m} reconciled: {row.as_json()}"
        for problem in found.problems:
            if not problem.endswith(tuple(f"customer: '{gone}'" for gone in strangers)):
                yield f"{month:%Y-%m} reconciled: {problem}"


def _no_amount_waits_behind_the_gate(context: Context) -> Iterator[str]:
    """Nobody is asked to decide about an amount that the gate calls implausible."""
    for hold in context.ledger.read(queries.holds_to_decide):
        for gate in closed_gates(context, [hold.cell.usage_day]):
            names = {finding.organization_id for finding in gate.findings}
            if names & {None, hold.cell.organization_id}:
                yield f"{hold.cell} waits for a decision, and its gate is closed: {gate.findings}"


def _decisions_are_kept(world: World, context: Context) -> Iterator[str]:
    """Exactly what people decided is on record, and what was carried into the current period is carried whole."""
    decided = context.ledger.read(decided_adjustments)
    if {each.id: each.approved for each in decided} != world.verdicts:
        yield f"decided were {world.verdicts}, on record are {decided}"
    entries = context.ledger.read(
        adjustment_entries_of,
        list(set(world.days()) | {e.cell.usage_day for d in decided for e in d.entries}),
    )
    written_off = sum(each.amount for each in decided if not each.approved)
    left = sum(e.amount for cells in entries.values() for found in cells.values() for e in found)
    if left != -written_off:
        yield f"adjustments leave {left}, and {written_off} were written off"
    for each in decided:
        open_adjustments = sum(entry.amount for entry in each.entries)
        if open_adjustments != (each.amount if each.approved else 0):
            yield f"{each.id}: {each.amount} were decided, {open_adjustments} carried into the current period"


def _what_stripe_said_is_known(world: World) -> Iterator[str]:
    """Whatever the order in which its events came: each object is known as Stripe has it."""
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


def _mismatches_are_stripes_doing(world: World, context: Context) -> Iterator[str]:
    """A mismatch is left for people only where Stripe lost something, or the customer is gone."""
    lost = {(e.customer, e.event_name) for e in world.account.events if not e.counted}
    for check in context.ledger.read(queries.checks, None, "mismatch"):
        where = check["customer"], check["event_name"]
        if where not in lost and where[0] in world.account.customers:
            yield f"a mismatch that nobody made: {check}"


def _nothing_is_left(world: World, context: Context) -> Iterator[str]:
    counts = context.ledger.read(queries.counts, world.days())
    for state in ("planned", "sending", "ambiguous"):
        if counts[state]:
            yield f"{counts[state]} events are still {state}"
    flagged = bool(context.ledger.read(queries.checks, None, "mismatch"))
    if counts["accepted"] and not flagged:
        yield f"{counts['accepted']} events are accepted, not verified, and nobody says why"
    events = context.inbox.counts()
    if events["received"] or events["failed"]:
        yield f"Stripe's events are left: {events}: {context.inbox.records(limit=3)}"
    unfinished = unfinished_days(context)
    if unfinished and not flagged:
        yield f"the sensor would run {unfinished} for ever"


def _recorded_total(events: list[RecordedEvent], formula: str) -> int | None:
    if not events:
        return None
    if formula == "sum":
        return sum(event.value for event in events)
    return max(events, key=lambda event: event.revision).value


def _cuts(world: World, organization: str, history: list[RecordedEvent]) -> set[int]:
    """Where billing periods end inside a day, by Stripe's own objects."""
    known = world.context("oracle").customers.mapping()
    customers = {s.customer for s in history} | {known.get(organization)}
    boundaries: set[int] = set()
    for subscription in world.sandbox.billing.subscriptions.values():
        if subscription["customer"] in customers:
            for name in ("ended_at", "cancel_at"):
                boundaries |= {subscription[name]} - {None}
            for item in subscription["items"]["data"]:
                anchor, end = subscription["start_date"], item["current_period_end"]
                boundaries |= set(range(anchor, end + 1, 3 * 86_400))
    for invoice in world.sandbox.billing.invoices.values():
        if invoice["customer"] in customers:
            boundaries |= {invoice["period_start"], invoice["period_end"]}
    return boundaries


def _organizations(world: World) -> tuple[str, ...]:
    return ORGANIZATIONS


def _cell(day: date, organization: str, meter: str) -> Cell:
    return Cell(day, organization, meter)
