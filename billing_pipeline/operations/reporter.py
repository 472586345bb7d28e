"""A small Python API over the same ledger: state one organization's usage of one day.

For callers that know a count themselves and do not go through readings and snapshots. The same
rules apply: reporting the same count again sends nothing, another count is a correction, and
whatever Stripe may answer comes back as a DeliveryResult.

The daily run states what the readings prove, and corrects every cell to that, also one that was
reported here: give counts that do not come from the readings a ledger of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from billing_pipeline.ledger.adjustments import AdjustmentBook
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.model import (
    SENT,
    Cell,
    Hold,
    Measure,
    Meter,
    MeterEvent,
    MeterSpec,
    State,
    Waiting,
)
from billing_pipeline.rules.planning import (
    DayPlan,
    plan_cell,
    shared_customers,
)
from billing_pipeline.settings import ConfigurationError
from billing_pipeline.stripe_api.catalogue import look_up
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.delivery import Clock, DeliveryResult, deliver
from billing_pipeline.stripe_api.retrying import StripeUnreachable

MOST_AHEAD = timedelta(minutes=5)
"""Stripe refuses timestamps further ahead than this."""


class UsageReporter:
    """Reports single counts. `payers` gives who pays today."""

    def __init__(
        self,
        gateway: StripeGateway,
        ledger: Ledger,
        adjustments: AdjustmentBook,
        specs: Sequence[MeterSpec],
        payers: Callable[[], Payers],
        clock: Clock,
    ) -> None:
        self._gateway = gateway
        self._ledger = ledger
        self._adjustments = adjustments
        self._specs = specs
        self._payers = payers
        self._clock = clock

    def report_active_sensors(self, organization: str, count: int, at: datetime) -> DeliveryResult:
        """Report how many sensors of an organization were active at the instant `at`.

        The event is stamped `at` (or a second later than what was reported before about that UTC
        day). Raises UsageDefect for a count that is no exact, non-negative integer, ValueError
        for an `at` without a zone, ConfigurationError for a wrong key or meter.
        """
        return self._report(Measure.ACTIVE_SENSORS, organization, count, at)

    def report_reading_volume(self, organization: str, count: int, at: datetime) -> DeliveryResult:
        """Report the readings of an organization in the whole UTC day of `at`.

        `count` is the day's total so far, not an increment: on a `sum` meter the difference to
        what Stripe has recorded is sent. Raises as `report_active_sensors`.
        """
        return self._report(Measure.READING_VOLUME, organization, count, at)

    def _report(
        self, measure: Measure, organization: str, count: int, at: datetime
    ) -> DeliveryResult:
        if at.tzinfo is None:
            raise ValueError("`at` needs a time zone")
        instant = int(at.timestamp())
        cell_day = at.astimezone(UTC).date()
        try:
            catalogue = asyncio.run(look_up(self._gateway, self._specs))
        except StripeUnreachable as error:
            return DeliveryResult(False, str(error), "", State.PLANNED)
        self._ledger.bind(catalogue.account_id, catalogue.livemode, catalogue.meters, self._clock())
        fed = [meter for meter in catalogue.meters if meter.measure is measure]
        if len(fed) != 1:
            raise ConfigurationError(f"{len(fed)} meters are fed by {measure}; one is needed")
        cell = Cell(cell_day, organization, fed[0].event_name)
        if at > self._clock() + MOST_AHEAD:
            return DeliveryResult(False, f"{at.isoformat()} lies in the future", "", State.HELD)
        # What an earlier report left unresolved is resolved first; then this one can be planned.
        meters = catalogue.meters
        deliver(
            self._gateway,
            self._ledger,
            meters,
            [cell_day],
            self._clock,
            payers=self._payers(),
            leftovers=True,
        )
        planned = self._plan(fed[0], cell, count, instant)
        if isinstance(planned, DeliveryResult):
            return planned
        report = deliver(
            self._gateway, self._ledger, meters, [cell_day], self._clock, payers=self._payers()
        )
        for result in report.results:
            if result.identifier == planned.identifier:
                return result
        why = report.stopped or "an earlier event of this day is not resolved yet"
        return DeliveryResult(False, why, planned.identifier, State.PLANNED)

    def _plan(
        self, meter: Meter, cell: Cell, count: int, instant: int
    ) -> MeterEvent | DeliveryResult:
        """The event to deliver, or the result where there is none to deliver."""
        now = self._clock()
        day = cell.usage_day
        payers = self._payers()
        customer = payers.customers.get(cell.organization_id)
        with self._ledger.planning() as connection:
            every = self._ledger.recorded([day], connection)[day]
            recorded = every.get(cell, [])
            shared = customer in shared_customers(meter, payers.customers, every)
            outcome = plan_cell(
                meter,
                cell,
                count,
                customer,
                recorded,
                now,
                at=instant,
                shared=shared,
                payers=payers,
                adjustments=self._adjustments.adjustments([day], connection)[day].get(cell, ()),
            )
            plan = DayPlan(day)
            plan.add(cell, [] if outcome is None else [outcome], recorded)
            self._ledger.write_plan(connection, plan, cell.__eq__, None, now)
        last = recorded[-1] if recorded else None
        if isinstance(outcome, MeterEvent):
            return outcome
        if isinstance(outcome, Hold):
            return DeliveryResult(False, outcome.explanation, "", State.HELD)
        if isinstance(outcome, Waiting):
            assert last is not None  # it waits for an event
            return MeterEvent(
                cell, last.revision, last.customer, last.value, last.target, last.timestamp
            )
        if last is not None and last.state is State.REJECTED:
            return DeliveryResult(False, f"Stripe refused it: {last.error_code}", "", last.state)
        state = last.state if last is not None and last.state in SENT else State.VERIFIED
        return DeliveryResult(True, None, "", state)
