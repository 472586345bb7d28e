"""Tallies: rows in the making, figures added up day by day."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from billing_pipeline.ledger.queries import reported_between
from billing_pipeline.operations.context import Context, Progress
from billing_pipeline.operations.day_inputs import SpanInputs, stale_among
from billing_pipeline.operations.reconcile.figures import DayFigures
from billing_pipeline.operations.reconcile.rows import DayShare, RowPeriod
from billing_pipeline.rules.model import NOT_COUNTED, SENT, Formula, Meter
from billing_pipeline.rules.reconciliation import Cause, CellFacts, Step
from billing_pipeline.rules.segments import Segment
from billing_pipeline.rules.timestamps import day_end, day_start
from billing_pipeline.stripe_api.invoices import PeriodQuestion
from billing_pipeline.stripe_api.summaries import minutes_of
from billing_pipeline.usage.activity import DAY_ERRORS


@dataclass
class Tally:
    """A row in the making."""

    period: RowPeriod
    organizations: tuple[str, ...]
    meter: Meter
    readings: int = 0
    snapshot: int = 0
    ledger: int = 0
    beside: int = 0
    """What else was reported in the minutes in which the period begins and ends."""
    causes: list[Cause] = field(default_factory=list)
    shares: list[DayShare] | None = None
    newest_at: int = -1
    """Timestamp of the newest event, on a meter of which only that one counts."""
    unsure_at: int = -1
    """Timestamp of the newest zero that counts as not counted: it may have been counted."""

    @property
    def question(self) -> PeriodQuestion | None:
        """What to ask Stripe for this row."""
        period = self.period
        if period.customer is None or self.meter.meter_id is None:
            return None
        is_final = period.billing is not None and period.billing.is_final
        invoice = period.billing.invoice_id if period.billing is not None and is_final else None
        return PeriodQuestion(
            self.meter.meter_id, period.customer, period.start, period.end, invoice
        )

    def add(self, figures: DayFigures) -> None:
        """Add what a day says of the row's organizations."""
        start, end = within(self.period, figures.day)
        if end > figures.inputs.now.timestamp():
            return
        event_name = self.meter.event_name
        theirs = [
            o for o in self.organizations if figures.payer(o, event_name) == self.period.customer
        ]
        keeps_one = self.meter.formula is Formula.LAST
        if keeps_one and theirs:
            # Only what the period ends with counts: a later day replaces an earlier one.
            self.readings, self.snapshot, self.causes = 0, 0, []
        before = self.snapshot - self.readings
        for organization in theirs:
            proven, counted = figures.usage(organization, start, end)
            facts = figures.facts(self.meter, organization, Segment(start, end, counted))
            readings = proven.of(self.meter.measure)
            self.readings += readings
            self.snapshot += facts.target
            self._add_events(facts)
            self.causes += facts.reasons() if keeps_one else facts.causes()
            if self.shares is not None:
                self.shares.append(
                    DayShare(
                        figures.day, organization, start, end, readings, facts.target,
                        facts.reported, tuple(facts.causes()),
                    )
                )  # fmt: skip
        difference = self.snapshot - self.readings - before
        if difference and figures.changed is not None:
            self.causes.append(Cause(Step.SNAPSHOT, figures.changed, difference))

    def _add_events(self, facts: CellFacts) -> None:
        """Add what Stripe recorded of a segment, by the ledger."""
        if self.meter.formula is Formula.LAST:
            for each in facts.recorded:
                unsure = each.value == 0 and each.error_code == NOT_COUNTED
                if unsure and facts.segment.contains(each.timestamp):
                    self.unsure_at = max(self.unsure_at, each.timestamp)
            newest = max(facts.taken, key=lambda each: each.timestamp, default=None)
            if newest is not None and newest.timestamp > self.newest_at:
                self.newest_at, self.ledger = newest.timestamp, newest.value
            return
        self.ledger += facts.reported
        period = self.period
        first, last = minutes_of(period.start, period.end)
        self.beside += sum(
            each.value
            for each in facts.recorded
            if each.state in SENT
            and first <= each.timestamp < last
            and not period.start <= each.timestamp < period.end
        )


def tallies_of(context: Context, month: RowPeriod, wanted: Collection[str] | None) -> list[Tally]:
    """One tally for each meter and billing period that ends in the month, and for each gap."""
    meters = context.known_meters()
    periods = context.customers.billing_periods(month.start, month.end)
    belongs: dict[str, set[str]] = defaultdict(set)
    for organization, customer in context.payers().customers.items():
        belongs[customer].add(organization)
    is_running = month.start <= context.clock().timestamp() < month.end
    since = min([month.start, *(period.start for period in periods)])
    for organization, customer in context.ledger.read(reported_between, since, month.end):
        belongs[customer].add(organization)
    found = []
    for customer, names in belongs.items():
        if wanted is not None and not names & set(wanted):
            continue
        for meter in meters:
            theirs = [p for p in periods if p.customer == customer and p.bills(meter.meter_id)]
            rows = [
                RowPeriod(period.start, period.end, customer, period)
                for period in theirs
                if period.end <= month.end or is_running
            ]
            covered = [(period.start, period.end) for period in theirs]
            rows += [RowPeriod(start, end, customer) for start, end in _gaps(month, covered)]
            found += [
                Tally(row, tuple(sorted(names)), meter, shares=None if wanted is None else [])
                for row in rows
            ]
    return found


def _gaps(month: RowPeriod, covered: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The stretches of the month that no billing period covers."""
    gaps, at = [], month.start
    for start, end in sorted([*covered, (month.end, month.end)]):
        if at < start:
            gaps.append((at, start))
        at = max(at, end)
    return gaps


def add_up(
    context: Context,
    tallies: list[Tally],
    month: RowPeriod,
    wanted: Collection[str] | None,
    progress: Progress | None,
) -> list[str]:
    """Add each day to the tallies that it belongs to; returns what could not be read."""
    by_day: dict[date, list[Tally]] = {day: [] for day in month.days}
    for tally in tallies:
        for day in tally.period.days:
            by_day.setdefault(day, []).append(tally)
    first, today = context.settings.billing_start_day, context.clock().date()
    days = [day for day in sorted(by_day) if first <= day <= today]
    span = SpanInputs.read(context, context.known_meters(), days)
    stale, problems = stale_among(span, days), []
    without_customer = _WithoutCustomer(span.meters, month, wanted)
    for number, day in enumerate(days, start=1):
        try:
            stretches = _stretches(day, by_day[day], context.clock().timestamp())
            figures = DayFigures.read(span, day, stretches, is_stale=day in stale)
        except DAY_ERRORS as error:
            problems.append(f"{day}: its readings or snapshot cannot be read: {error}")
            continue
        for tally in by_day[day]:
            tally.add(figures)
        if day in month.days:
            without_customer.add(figures)
        if progress is not None:
            progress("reconciling", number, len(days))
    tallies += without_customer.tallies.values()
    return problems


def within(period: RowPeriod, day: date) -> tuple[int, int]:
    """The part of a day that lies in a row's period, in unix seconds."""
    return max(period.start, day_start(day)), min(period.end, day_end(day))


def _stretches(
    day: date, tallies: Sequence[Tally], now: float
) -> Mapping[str, list[tuple[int, int]]]:
    """The finished segments of a day that single rows take in."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for tally in tallies:
        start, end = within(tally.period, day)
        if (start, end) != (day_start(day), day_end(day)) and end <= now:
            for organization in tally.organizations:
                found[organization].add((start, end))
    return {organization: sorted(spans) for organization, spans in found.items()}


class _WithoutCustomer:
    """Rows of the calendar month for organizations without a customer."""

    def __init__(
        self, meters: Sequence[Meter], month: RowPeriod, wanted: Collection[str] | None
    ) -> None:
        self.tallies: dict[tuple[str, str], Tally] = {}
        self._meters, self._month, self._wanted = meters, month, wanted

    def add(self, figures: DayFigures) -> None:
        """Add what a day says of them."""
        present = figures.organizations()
        for organization in present if self._wanted is None else present & set(self._wanted):
            for meter in self._meters:
                key = organization, meter.event_name
                if key not in self.tallies and figures.payer(*key) is None:
                    shares: list[DayShare] | None = None if self._wanted is None else []
                    self.tallies[key] = Tally(self._month, (organization,), meter, shares=shares)
        for tally in self.tallies.values():
            tally.add(figures)
