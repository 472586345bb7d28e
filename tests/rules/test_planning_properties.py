"""Properties of planning against a model of Stripe that shares no code with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline.rules.model import (
    NOT_COUNTED,
    Cell,
    Formula,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
)
from tests.rules.support import (
    DAY,
    END,
    LAST,
    LAST_BY_DAY,
    START,
    SUM,
    SUM_BY_DAY,
    plan_one,
    recorded,
)

METERS = [SUM, LAST, SUM_BY_DAY, LAST_BY_DAY]

targets = st.integers(min_value=0, max_value=10**15 - 1) | st.integers(0, 3)
fates = st.sampled_from(["accepted", "rejected", "rejected later", "lost", "counted unseen"])


@dataclass
class StripeModel:
    """What Stripe would bill: events in the order received, as (identifier, timestamp, value)."""

    meter: Meter
    received: list[tuple[str, int, int]] = field(default_factory=list)

    def total(self) -> int:
        if not self.received:
            return 0
        if self.meter.event_time_window == "day":
            return self.received[-1][2]  # the newest received replaces the day
        if self.meter.formula is Formula.LAST:
            return max(self.received, key=lambda event: event[1])[2]
        return sum(value for _, _, value in self.received)


@dataclass
class Ledger:
    """The events about one cell, as recorded and as planned."""

    meter: Meter
    stripe: StripeModel
    recorded: list[RecordedEvent] = field(default_factory=list)
    planned: list[MeterEvent] = field(default_factory=list)

    def report(self, target: int, fate: str, *, retry: bool = False) -> bool:
        """Plan once and let the event meet its fate; returns whether there was one."""
        event = plan_one(self.meter, target, self.recorded, retry_rejected=retry)
        if event is None:
            return False
        assert isinstance(event, MeterEvent)
        self.planned.append(event)
        if fate in ("accepted", "counted unseen"):
            self.stripe.received.append((event.identifier, event.timestamp, event.value))
        state, code = {
            "accepted": (State.ACCEPTED, None),
            "counted unseen": (State.ACCEPTED, None),  # a lost answer, resolved by asking again
            "lost": (State.REJECTED, NOT_COUNTED),
            "rejected": (State.REJECTED, "meter_event_customer_not_found"),
            "rejected later": (State.REJECTED, "archived_meter"),
        }[fate]
        content = event.revision, event.customer, event.value, event.target, event.timestamp
        self.recorded.append(RecordedEvent(*content, state, code))
        return True


@settings(max_examples=400, deadline=None)
@given(
    meter=st.sampled_from(METERS),
    history=st.lists(st.tuples(targets, fates), max_size=12),
    final=targets,
)
def test_whatever_happened_stripe_ends_at_the_target_and_nothing_is_reported_twice(
    meter: Meter, history: list[tuple[int, str]], final: int
) -> None:
    ledger = Ledger(meter, StripeModel(meter))
    for target, fate in history:
        ledger.report(target, fate)
    # The world becomes quiet: what was refused is fixed, and everything is accepted.
    ledger.report(final, "accepted", retry=True)

    assert ledger.stripe.total() == final
    assert not ledger.report(final, "accepted", retry=True)
    identifiers = [event.identifier for event in ledger.planned]
    assert len(set(identifiers)) == len(identifiers)
    assert all(len(identifier) <= 100 for identifier in identifiers)
    stamps = [event.timestamp for event in ledger.planned]
    assert stamps == sorted(set(stamps))
    assert all(START <= stamp < END for stamp in stamps)


@given(
    organizations=st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True),
    days=st.lists(
        st.dates(date(2000, 1, 1), date(2099, 1, 1)), min_size=1, max_size=4, unique=True
    ),
)
def test_identifiers_of_different_cells_and_revisions_differ(
    organizations: list[str], days: list[date]
) -> None:
    seen = [
        MeterEvent(Cell(day, organization, meter), revision, "cus", 1, 1, 0).identifier
        for day in days
        for organization in organizations
        for meter in ("a", "b")
        for revision in (1, 2, 11)
    ]
    assert len(set(seen)) == len(seen)
    assert all(len(identifier) <= 100 and identifier.isascii() for identifier in seen)


def test_an_identifier_depends_on_nothing_but_cell_and_revision() -> None:
    cell = Cell(DAY, "órg", "m")
    first = MeterEvent(cell, 3, "cus_1", 5, 5, 100)
    again = MeterEvent(cell, 3, "cus_2", 9, 7, 200)
    assert first.identifier == again.identifier
    key = first.idempotency_key(SUM)
    assert key != again.idempotency_key(SUM)
    assert key == replace(first, target=0).idempotency_key(SUM)


@given(
    now=st.integers(0, 52 * 86_400).map(lambda s: datetime.fromtimestamp(START + s, UTC)),
    earlier=st.none() | st.integers(0, 86_399),
)
def test_an_event_is_never_stamped_where_stripe_would_refuse_it(
    now: datetime, earlier: int | None
) -> None:
    events = [] if earlier is None else [replace(recorded(5)[0], timestamp=START + earlier)]
    planned = plan_one(SUM, 9, events, now=now)
    if isinstance(planned, MeterEvent):
        stamp = datetime.fromtimestamp(planned.timestamp, UTC)
        assert now - timedelta(days=34) <= stamp <= now + timedelta(minutes=5)
        assert START <= planned.timestamp < END
        assert earlier is None or planned.timestamp > START + earlier
