"""Reconcile a month: readings → snapshot → ledger → Stripe's summary → invoice line.

One row per billing period (or, where no subscription is known, calendar month), organization and
meter, with the difference at each step and its cause. A month has the periods that end in it; the
month that runs has those that run, too, each as far as it is over. Changes nothing, but for sensor
activity that is counted again where files have changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd

from billing_pipeline.customers.directory import BillingPeriod
from billing_pipeline.operations.reporting import (
    Context,
    Progress,
    planned_basis,
    unbilled,
    usage_by_organization,
)
from billing_pipeline.rules.adjustments import (
    Entry,
    adjusted_by,
)
from billing_pipeline.rules.agreement import possible_figures
from billing_pipeline.rules.model import (
    NOT_COUNTED,
    SENT,
    Cell,
    Formula,
    HoldReason,
    Meter,
    RecordedEvent,
    Usage,
)
from billing_pipeline.rules.reconciliation import (
    Cause,
    CellFacts,
    HeldSegment,
    Reconciled,
    Step,
)
from billing_pipeline.rules.recorded import reported_customer
from billing_pipeline.rules.segments import Segment
from billing_pipeline.rules.timestamps import day_end, day_start, is_over
from billing_pipeline.settings import ConfigurationError
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.invoices import (
    PeriodQuestion,
    StripesFigures,
    ask_periods,
)
from billing_pipeline.stripe_api.summaries import minutes_of
from billing_pipeline.usage.activity import DAY_ERRORS

LONGEST_DRAFT = timedelta(hours=73)
"""An invoice is a draft for 72 hours at most; one that is not known by then should be missed."""


INVOICED_STATUSES = ("active", "trialing", "past_due", "unpaid", "canceled")
"""Statuses of subscriptions whose periods end with an invoice; a canceled one ended with one."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a row is about: [start, end) in unix seconds of one customer, or of none.

    `period` is None for a time without a billing period.
    """

    start: int
    end: int
    customer: str | None
    period: BillingPeriod | None = None

    @property
    def days(self) -> list[date]:
        """The UTC days that it touches."""
        first = datetime.fromtimestamp(self.start, UTC).date()
        last = datetime.fromtimestamp(self.end - 1, UTC).date()
        return [first + timedelta(days=n) for n in range((last - first).days + 1)]


@dataclass(frozen=True, slots=True)
class Part:
    """What one usage day gives to a row: [start, end) in unix seconds, and units."""

    day: date
    organization: str
    start: int
    end: int
    readings: int
    snapshot: int
    ledger: int
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class Row:
    """One organization and meter in one span. Several organizations with one customer are one."""

    span: Span
    organizations: tuple[str, ...]
    meter: str
    figures: Reconciled
    status: str
    """final, draft, open (not over, or no invoice yet), missing (no invoice, though there should
    be one by now), none (no billing period)."""
    segments: tuple[Part, ...] = ()
    """Day by day; only where single organizations were asked for."""

    @property
    def is_right(self) -> bool:
        """Whether every difference has a cause."""
        return not self.figures.unexplained

    def as_json(self) -> dict[str, Any]:
        """As `billing reconcile --json` prints it."""
        span, figures = self.span, self.figures
        return {
            "organization_id": ", ".join(self.organizations),
            "customer": span.customer,
            "meter": self.meter,
            "period_start": _instant(span.start),
            "period_end": _instant(span.end),
            "subscription": span.period and span.period.subscription,
            "invoice": span.period and span.period.invoice_id,
            "status": self.status,
            "readings": figures.readings,
            "snapshot": figures.snapshot,
            "ledger": figures.ledger,
            "stripe": figures.stripe,
            "invoiced": figures.invoiced,
            "differences": {str(step): amount for step, amount in figures.differences.items()},
            "causes": [
                {"step": str(cause.step), "text": cause.text, "amount": cause.amount}
                for cause in figures.causes
            ],
            "unexplained": [str(step) for step in figures.unexplained],
        }


@dataclass(frozen=True)
class Verified:
    """How much of a month's usage Stripe's summaries confirm. Counts are of cells."""

    cells: int
    verified: int
    hours: float | None
    """From a day's end until its last cell was first verified: the median over days."""

    @property
    def share(self) -> float:
        """Between 0 and 1; of nothing, 1."""
        return self.verified / self.cells if self.cells else 1.0


@dataclass(frozen=True)
class Reconciliation:
    """A month, row by row. `problems` are days and figures that could not be read."""

    month: date
    rows: list[Row]
    verified: Verified
    problems: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether every difference has a cause, and everything could be read."""
        return not self.problems and all(row.is_right for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """As `billing reconcile --json` prints it."""
        return {
            "month": f"{self.month:%Y-%m}",
            "rows": [row.as_json() for row in self.rows],
            "verified": {**asdict(self.verified), "share": self.verified.share},
            "problems": self.problems,
            "right": self.is_right,
        }


def reconcile_month(
    context: Context,
    month: date,
    *,
    organizations: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Reconciliation:
    """Reconcile the month that begins on `month`, for some organizations or (None) all.

    Raises ConfigurationError for a month that has not begun, or a key that Stripe refuses.
    """
    following = (month + timedelta(days=32)).replace(day=1)
    whole, now = Span(day_start(month), day_start(following), None), context.clock()
    if now.timestamp() < whole.start:
        raise ConfigurationError(f"{month:%Y-%m} has not begun")
    tallies = _tallies(context, whole, organizations)
    problems = _add_up(context, tallies, whole, organizations, progress)
    found = _ask_stripe(context, tallies, progress)
    late = _late(context)
    rows = [_row(tally, found, late, now) for tally in tallies]
    return Reconciliation(
        month,
        sorted((row for row in rows if _is_of_interest(row)), key=_order),
        _verified(context, whole.days, organizations),
        problems + found.unread,
    )


REPORT_FILE = "reconciliation.csv"


def keep(context: Context, found: Reconciliation) -> str:
    """Write a month's rows as CSV beside the snapshots, replacing those of before; the path."""
    folder = f"month={found.month:%Y-%m}"
    rows = [row.as_json() for row in found.rows]
    for row in rows:
        row["causes"] = "; ".join(f"{each['step']}: {each['text']}" for each in row["causes"])
        row["unexplained"] = ", ".join(row["unexplained"])
        row |= {f"difference_{step}": much for step, much in row.pop("differences").items()}
    with context.snapshots.replacing(folder, REPORT_FILE) as draft:
        pd.DataFrame(rows).to_csv(draft, index=False)
    return context.snapshots.path(folder, REPORT_FILE)


# Whose usage, in which period ---------------------------------------------------------------


@dataclass
class _Tally:
    """A row in the making: figures added up day by day."""

    span: Span
    organizations: tuple[str, ...]
    meter: Meter
    readings: int = 0
    snapshot: int = 0
    ledger: int = 0
    beside: int = 0
    """What else was reported in the minutes in which the span begins and ends."""
    causes: list[Cause] = field(default_factory=list)
    segments: list[Part] | None = None
    newest_at: int = -1
    """Timestamp of the newest event, on a meter of which only that one counts."""
    unsure_at: int = -1
    """Timestamp of the newest zero that was taken for not counted: of these nobody is sure."""

    @property
    def question(self) -> PeriodQuestion | None:
        """What Stripe is to be asked for this row."""
        if self.span.customer is None or self.meter.meter_id is None:
            return None
        period = self.span.period
        invoice = period.invoice_id if period is not None and period.is_final else None
        return PeriodQuestion(
            self.meter.meter_id, self.span.customer, self.span.start, self.span.end, invoice
        )


def _tallies(context: Context, month: Span, wanted: Collection[str] | None) -> list[_Tally]:
    """One tally for each meter and billing period that ends in the month, and for each gap."""
    meters = context.ledger.known_meters(context.settings.billing_meters)
    periods = context.customers.billing_periods(month.start, month.end)
    belongs: dict[str, set[str]] = defaultdict(set)
    for organization, customer in context.payers().customers.items():
        belongs[customer].add(organization)
    is_running = month.start <= context.clock().timestamp() < month.end
    since = min([month.start, *(period.start for period in periods)])
    for organization, customer in context.inquiry.reported_for(since, month.end):
        belongs[customer].add(organization)
    found = []
    for customer, names in belongs.items():
        if wanted is not None and not names & set(wanted):
            continue
        for meter in meters:
            theirs = [p for p in periods if p.customer == customer and p.bills(meter.meter_id)]
            spans = [
                Span(period.start, period.end, customer, period)
                for period in theirs
                if period.end <= month.end or is_running
            ]
            covered = [(period.start, period.end) for period in theirs]
            spans += [Span(start, end, customer) for start, end in _gaps(month, covered)]
            for span in spans:
                segments: list[Part] | None = None if wanted is None else []
                found.append(_Tally(span, tuple(sorted(names)), meter, segments=segments))
    return found


def _gaps(month: Span, covered: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of the month that nothing covers."""
    gaps, at = [], month.start
    for start, end in sorted([*covered, (month.end, month.end)]):
        if at < start:
            gaps.append((at, start))
        at = max(at, end)
    return gaps


# Readings, snapshot, ledger: day by day --------------------------------------------------------


def _add_up(
    context: Context,
    tallies: list[_Tally],
    month: Span,
    wanted: Collection[str] | None,
    progress: Progress | None,
) -> list[str]:
    """Add each day to the tallies that it belongs to; returns what could not be read."""
    by_day: dict[date, list[_Tally]] = {day: [] for day in month.days}
    for tally in tallies:
        for day in tally.span.days:
            by_day.setdefault(day, []).append(tally)
    without_customer = _WithoutCustomer(context, month, wanted)
    planned, problems = context.inquiry.planned_from(), []
    for number, (day, here) in enumerate(sorted(by_day.items()), start=1):
        if context.settings.billing_start_day <= day <= context.clock().date():
            try:
                look = _Day.read(context, day, here, planned.get(day))
            except DAY_ERRORS as error:
                problems.append(f"{day}: its readings or snapshot cannot be read: {error}")
                continue
            for tally in here:
                _add_day(tally, look)
            if day in month.days:
                without_customer.add_day(look)
        if progress is not None:
            progress("reconciling", number, len(by_day))
    tallies += without_customer.tallies.values()
    return problems


@dataclass(frozen=True)
class _Day:
    """A day as all rooms have it."""

    day: date
    now: float
    proven: Mapping[str, Usage]
    """By organization, what the readings prove now."""
    counted: Mapping[str, Usage]
    """By organization, what the snapshot says."""
    segments: Mapping[tuple[str, int, int], Usage]
    """By organization, start and end (seconds of the day): parts that single periods take in."""
    recorded: Mapping[Cell, Sequence[RecordedEvent]]
    adjustments: Mapping[Cell, Sequence[Entry]]
    held: Mapping[Cell, Sequence[HeldSegment]]
    refused: Mapping[Cell, str]
    undone: Mapping[Cell, str]
    stale: str | None
    changed: str | None
    customers: Mapping[str, str]
    """By organization, as mapped today."""

    def payer(self, organization: str, meter: str) -> str | None:
        """Whose usage a cell is: the customer's that it was reported for, else today's."""
        reported = reported_customer(self.recorded.get(Cell(self.day, organization, meter), ()))
        return reported or self.customers.get(organization)

    @classmethod
    def read(
        cls, context: Context, day: date, tallies: Sequence[_Tally], planned_from: str | None
    ) -> _Day:
        """Read it. Raises DAY_ERRORS."""
        now = context.clock()
        over = is_over(day, now)
        spans = _segments(day, tallies, now.timestamp())
        counts = context.usage.in_segments(day, spans) if spans else {}
        snapshot = context.usage.snapshot(day) if over else None
        held: dict[Cell, list[HeldSegment]] = defaultdict(list)
        for each in context.inquiry.held([day], zeros=True):
            held[each.cell].append(HeldSegment(HoldReason(each.reason), each.start, each.value))
        stale = changed = None
        if not over:
            stale = f"{day} is not over, and its part in the period is not reported yet"
        elif snapshot is None:
            stale = changed = f"{day} is not counted yet"
        else:
            if not context.usage.is_current(day):
                changed = f"the readings of {day} changed after they were counted"
            if planned_from != planned_basis(context, day, snapshot.snapshot_id):
                stale = f"{day} was counted and is not reported from that yet"
        return cls(
            day,
            now.timestamp(),
            {o: Usage(*both) for o, both in context.usage.proven(day).items()} if over else {},
            {} if snapshot is None else usage_by_organization(snapshot),
            {
                (organization, *span): Usage(*both)
                for organization, segments in spans.items()
                for span, both in zip(segments, counts[organization], strict=True)
            },
            context.ledger.recorded([day])[day],
            context.adjustments.adjustments([day])[day],
            held,
            {
                Cell(day, row["organization_id"], row["meter"]): str(row["error_message"])
                for row in context.inquiry.rejected([day])
            },
            context.inquiry.undone(day),
            stale,
            changed,
            context.payers().customers,
        )


def _segments(day: date, tallies: Sequence[_Tally], now: float) -> dict[str, list[tuple[int, int]]]:
    """The finished parts of a day that single spans take in, in seconds of the day."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for tally in tallies:
        start, end = _within(tally.span, day)
        if (start, end) != (day_start(day), day_end(day)) and end <= now:
            for organization in tally.organizations:
                found[organization].add((start - day_start(day), end - day_start(day)))
    return {organization: sorted(spans) for organization, spans in found.items()}


def _within(span: Span, day: date) -> tuple[int, int]:
    return max(span.start, day_start(day)), min(span.end, day_end(day))


def _add_day(tally: _Tally, look: _Day) -> None:
    """Add what a day says of a row's organizations."""
    start, end = _within(tally.span, look.day)
    if end > look.now:
        return
    payers = {o: look.payer(o, tally.meter.event_name) for o in tally.organizations}
    theirs = [o for o, customer in payers.items() if customer == tally.span.customer]
    if tally.meter.formula is Formula.LAST and theirs:
        # Only what the period ends with counts: a later day takes the place of an earlier one.
        tally.readings, tally.snapshot, tally.causes = 0, 0, []
    before = tally.snapshot - tally.readings
    for organization in theirs:
        proven, counted = _usage(look, organization, start, end)
        facts = _facts(tally, look, organization, Segment(start, end, counted))
        tally.readings += proven.of(tally.meter.measure)
        tally.snapshot += facts.target
        _add_events(tally, facts)
        keeps_one = tally.meter.formula is Formula.LAST
        tally.causes += facts.reasons() if keeps_one else facts.causes()
        if tally.segments is not None:
            tally.segments.append(
                Part(
                    look.day,
                    organization,
                    start,
                    end,
                    proven.of(tally.meter.measure),
                    facts.target,
                    facts.reported,
                    tuple(facts.causes()),
                )
            )
    difference = tally.snapshot - tally.readings - before
    if difference and look.changed is not None:
        tally.causes.append(Cause(Step.SNAPSHOT, look.changed, difference))


def _usage(look: _Day, organization: str, start: int, end: int) -> tuple[Usage, Usage]:
    """What the readings prove of a part of a day, and what was counted of it.

    A part is no whole day's snapshot: it is counted from the readings each time.
    """
    midnight, nothing = day_start(look.day), Usage()
    if (start, end) == (midnight, day_end(look.day)):
        return look.proven.get(organization, nothing), look.counted.get(organization, nothing)
    segment = look.segments.get((organization, start - midnight, end - midnight), nothing)
    return segment, segment


def _facts(tally: _Tally, look: _Day, organization: str, segment: Segment) -> CellFacts:
    cell = Cell(look.day, organization, tally.meter.event_name)
    return CellFacts(
        tally.meter,
        segment,
        look.recorded.get(cell, ()),
        look.held.get(cell, ()),
        adjusted_by(look.adjustments.get(cell, ()), segment),
        look.refused.get(cell),
        look.undone.get(cell),
        look.stale,
    )


def _add_events(tally: _Tally, facts: CellFacts) -> None:
    """Add what the ledger says that Stripe has of a part of a cell."""
    if tally.meter.formula is Formula.LAST:
        for each in facts.recorded:
            unsure = each.value == 0 and each.error_code == NOT_COUNTED
            if unsure and facts.segment.holds(each.timestamp):
                tally.unsure_at = max(tally.unsure_at, each.timestamp)
        newest = max(facts.taken, key=lambda each: each.timestamp, default=None)
        if newest is not None and newest.timestamp > tally.newest_at:
            tally.newest_at, tally.ledger = newest.timestamp, newest.value
        return
    tally.ledger += facts.reported
    first, last = minutes_of(tally.span.start, tally.span.end)
    tally.beside += sum(
        each.value
        for each in facts.recorded
        if each.state in SENT
        and first <= each.timestamp < last
        and not tally.span.start <= each.timestamp < tally.span.end
    )


class _WithoutCustomer:
    """Rows of the calendar month for organizations without a customer."""

    def __init__(self, context: Context, month: Span, wanted: Collection[str] | None) -> None:
        self.tallies: dict[tuple[str, str], _Tally] = {}
        self._meters = context.ledger.known_meters(context.settings.billing_meters)
        self._month, self._wanted = month, wanted

    def add_day(self, look: _Day) -> None:
        """Add what a day says of them."""
        present = {*look.proven, *look.counted, *(cell.organization_id for cell in look.held)}
        for organization in present if self._wanted is None else present & set(self._wanted):
            for meter in self._meters:
                key = organization, meter.event_name
                if key not in self.tallies and look.payer(*key) is None:
                    segments: list[Part] | None = None if self._wanted is None else []
                    self.tallies[key] = _Tally(
                        self._month, (organization,), meter, segments=segments
                    )
        for tally in self.tallies.values():
            _add_day(tally, look)


# Stripe, and the verdict -----------------------------------------------------------------------


def _ask_stripe(
    context: Context, tallies: Sequence[_Tally], progress: Progress | None
) -> StripesFigures:
    questions = {q for tally in tallies if (q := tally.question) is not None}
    if context.settings.stripe_secret_key is None or not questions:
        return StripesFigures()

    def watch(done: int, total: int) -> None:
        if progress is not None:
            progress("asking", done, total)

    with Reads(context.ledger, context.gateway.reads_a_month, context.clock) as reads:
        return ask_periods(context.gateway, reads, sorted(questions, key=str), watch)


Late = Mapping[tuple[str, str], Sequence[tuple[int, bool]]]
"""By invoice and meter, what Stripe took after the invoice was final: value, and if certainly."""


def _late(context: Context) -> Late:
    found: dict[tuple[str, str], list[tuple[int, bool]]] = defaultdict(list)
    for event in unbilled(context):
        found[event["invoice"], event["meter"]].append((event["value"], event["certain"]))
    return found


def _row(tally: _Tally, found: StripesFigures, late: Late, now: datetime) -> Row:
    question, status = tally.question, _status(tally.span, now)
    stripe = invoiced = None
    if question is not None:
        stripe = found.summaries.get(question)
        if question.invoice in found.invoiced:
            invoiced = found.invoiced[question.invoice].get(question.meter_id, 0)
    if status == "missing":
        invoiced = 0
    figures = Reconciled(
        tally.readings,
        tally.snapshot,
        tally.ledger,
        tally.ledger + tally.beside,
        stripe,
        invoiced,
        tuple(tally.causes),
        tally.meter.formula is Formula.LAST,
    )
    more = _invoice_causes(tally, figures, late)
    if figures.keeps_one and stripe == 0 and tally.unsure_at > tally.newest_at:
        message = "a zero whose outcome stayed unknown was counted, and could not be reported again"
        more.append(Cause(Step.STRIPE, message, None))
    figures = replace(figures, causes=(*figures.causes, *more))
    return Row(
        tally.span,
        tally.organizations,
        tally.meter.event_name,
        figures,
        status,
        tuple(tally.segments or ()),
    )


def _status(span: Span, now: datetime) -> str:
    period = span.period
    if period is None:
        return "none"
    if period.is_final:
        return "final"
    if period.end > now.timestamp():
        return "open"
    if period.invoice_id is not None:
        return "draft"
    return "missing" if now.timestamp() > period.end + LONGEST_DRAFT.total_seconds() else "open"


def _invoice_causes(tally: _Tally, figures: Reconciled, late: Late) -> list[Cause]:
    """Why an invoice bills another figure than Stripe's meter has."""
    difference, period = figures.differences.get(Step.INVOICE, 0), tally.span.period
    if not difference or period is None:
        return []
    if period.invoice_id is None:
        if period.cut_short:
            message = ("the subscription was cancelled inside the period, and no invoice for it is "
                    "known: without `invoice_now` Stripe drops the usage")  # fmt: skip
        elif period.status is not None and period.status not in INVOICED_STATUSES:
            message = (
                f"its subscription is {period.status} in Stripe, which makes no invoice for it"
            )
        else:
            return []
        return [Cause(Step.INVOICE, message, None)]
    causes = []
    if missed := late.get((period.invoice_id, tally.meter.event_name), ()):
        message = f"{len(missed)} event(s) were taken, or tried again, after the invoice was final"
        if tally.meter.formula is Formula.LAST:
            return [Cause(Step.INVOICE, message, None)]
        surely = sum(value for value, certain in missed if certain)
        perhaps = [value for value, certain in missed if not certain]
        amounts = {-surely - more for more in possible_figures(0, perhaps, replaces=False) or ()}
        amount = int(difference) if difference in amounts else -surely
        causes.append(Cause(Step.INVOICE, message, amount))
        difference -= amount
    if figures.invoiced == 0 and difference > 0:
        causes.append(Cause(Step.INVOICE, "a total below zero bills 0", int(difference)))
    return causes


def _is_of_interest(row: Row) -> bool:
    """Not a gap in which nothing was used or reported."""
    figures = row.figures
    return row.span.period is not None or any(
        (figures.readings, figures.snapshot, figures.ledger, figures.stripe)
    )


def _order(row: Row) -> tuple[Any, ...]:
    return row.organizations, row.span.start, row.meter, row.span.customer or ""


def _verified(
    context: Context, days: Sequence[date], organizations: Collection[str] | None
) -> Verified:
    cells, verified = context.inquiry.verified_cells(days, organizations)
    hours = sorted(
        (at - datetime.fromtimestamp(day_end(day), UTC)).total_seconds() / 3600
        for day, at in context.inquiry.verified_since(days).items()
    )
    return Verified(cells, verified, hours[len(hours) // 2] if hours else None)


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
