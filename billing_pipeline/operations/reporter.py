"""A small Python API over the same ledger: report one organization's usage of one day.

For callers that know a count themselves and do not go through readings and snapshots. The same
rules apply: the same count again sends nothing, another count is a correction, and whatever Stripe
answers comes back as a DeliveryResult.

The daily run reports what the readings prove, and corrects every cell to that, also one that was
reported here. Give counts that do not come from the readings a ledger of their own.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from billing_pipeline.errors import ConfigurationError, StripeUnreachable
from billing_pipeline.ledger.account import bind
from billing_pipeline.ledger.adjustments import adjustment_entries_of
from billing_pipeline.ledger.events import recorded_events
from billing_pipeline.ledger.plans import write_plan
from billing_pipeline.operations.context import Context
from billing_pipeline.rules.holds import Hold
from billing_pipeline.rules.model import (
    SENT,
    Cell,
    Measure,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
    Waiting,
    usage_of,
)
from billing_pipeline.rules.planning import CellInputs, DayPlan, plan_cell, shared_customers
from billing_pipeline.rules.segments import whole_day
from billing_pipeline.stripe_api.catalogue import look_up
from billing_pipeline.stripe_api.delivery import DeliveryReport, DeliveryResult, deliver
from billing_pipeline.stripe_facts import MOST_AHEAD


class UsageReporter:
    """Reports single counts in the ledger of a context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def report_active_sensors(self, organization: str, count: int, at: datetime) -> DeliveryResult:
        """Report how many sensors of an organization were active at the instant `at`.

        The event is stamped `at`, or a second later than what was reported before about that UTC
        day. Raises UsageDefect for a count that is not an exact, non-negative integer, ValueError
        for an `at` without a zone, ConfigurationError for a wrong key or meter.
        """
        return self._report(Measure.ACTIVE_SENSORS, organization, count, at)

    def report_reading_volume(self, organization: str, count: int, at: datetime) -> DeliveryResult:
        """Report the readings of an organization in the whole UTC day of `at`.

        `count` is the day's total so far, not an increment: on a `sum` meter the difference to
        what Stripe recorded is sent. Raises as `report_active_sensors`.
        """
        return self._report(Measure.READING_VOLUME, organization, count, at)

    def _report(
        self, measure: Measure, organization: str, count: int, at: datetime
    ) -> DeliveryResult:
        if at.tzinfo is None:
            raise ValueError("`at` needs a time zone")
        context, now = self._context, self._context.clock()
        try:
            found = asyncio.run(look_up(context.gateway, context.settings.billing_meters))
        except StripeUnreachable as error:
            return DeliveryResult(False, str(error), "", State.PLANNED)
        context.ledger.write(bind, found.account_id, found.livemode, found.meters, now)
        fed = [meter for meter in found.meters if meter.measure is measure]
        if len(fed) != 1:
            raise ConfigurationError(f"{len(fed)} meters are fed by {measure}; one is needed")
        if at > now + MOST_AHEAD:
            return DeliveryResult(False, f"{at.isoformat()} lies in the future", "", State.HELD)
        cell = Cell(at.astimezone(UTC).date(), organization, fed[0].event_name)
        # What an earlier report left unresolved is resolved first; then this one can be planned.
        self._deliver(found.meters, cell, leftovers=True)
        planned = self._plan(fed[0], cell, count, int(at.timestamp()))
        if isinstance(planned, DeliveryResult):
            return planned
        report = self._deliver(found.meters, cell)
        for result in report.results:
            if result.identifier == planned.identifier:
                return result
        why = report.stopped or "an earlier event of this day is unresolved"
        return DeliveryResult(False, why, planned.identifier, State.PLANNED)

    def _deliver(
        self, meters: tuple[Meter, ...], cell: Cell, *, leftovers: bool = False
    ) -> DeliveryReport:
        context = self._context
        return deliver(
            context.access(meters), [cell.usage_day], context.payers(), leftovers=leftovers
        )

    def _plan(
        self, meter: Meter, cell: Cell, count: int, instant: int
    ) -> MeterEvent | DeliveryResult:
        """The event to deliver, or the result if there is none to deliver."""
        context, day = self._context, cell.usage_day
        payers = context.payers()
        customer = payers.customers.get(cell.organization_id)
        with context.ledger.planning() as writer:
            recorded = recorded_events(writer.connection, [day])[day]
            inputs = CellInputs(
                meter,
                cell,
                [whole_day(day, usage_of(meter.measure, count))],
                customer,
                recorded.get(cell, []),
                context.clock(),
                payers,
                adjustment_entries_of(writer.connection, [day])[day].get(cell, ()),
                instant,
                customer in shared_customers(meter, payers.customers, recorded),
            )
            outcomes = plan_cell(inputs)
            plan = DayPlan(day)
            plan.add(cell, outcomes, inputs.recorded)
            write_plan(writer, plan, cell.__eq__, None, inputs.now)
        last = inputs.recorded[-1] if inputs.recorded else None
        outcome = outcomes[0] if outcomes else None
        if isinstance(outcome, MeterEvent):
            return outcome
        if isinstance(outcome, Hold):
            return DeliveryResult(False, outcome.explanation, "", State.HELD)
        if isinstance(outcome, Waiting):
            assert last is not None  # it waits for an event
            return _as_event(cell, last)
        if last is not None and last.state is State.REJECTED:
            return DeliveryResult(False, f"Stripe refused it: {last.error_code}", "", last.state)
        state = last.state if last is not None and last.state in SENT else State.VERIFIED
        return DeliveryResult(True, None, "", state)


def _as_event(cell: Cell, last: RecordedEvent) -> MeterEvent:
    return MeterEvent(cell, last.revision, last.customer, last.value, last.target, last.timestamp)
