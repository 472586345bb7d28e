"""Properties of planning against a model of Stripe that shares no code with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline.rules.model import (
    NOT_COUNTED,
    Cell,
    Formula,
    Measure,
    Meter,
    MeterEvent,
    RecordedEvent,
    State,
)
from billing_pipeline.rules.planning import plan_cell

DAY = date(2026, 3, 10)
MIDNIGHT = int(datetime(2026, 3, 10, tzinfo=UTC).timestamp())
NOW = datetime(2026, 3, 12, tzinfo=UTC)

METERS = [
    Meter("sum", Formula.SUM, Measure.READING_VOLUME),
    Meter("last", Formula.LAST, Measure.ACTIVE_SENSORS),
    Meter("sum-by-day", Formula.SUM, Measure.READING_VOLUME, "day"),
    Meter("last-by-day", Formula.LAST, Measure.ACTIVE_SENSORS, "day"),
]

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


def step(
    meter: Meter,
    stripe: StripeModel,
    recorded: list[RecordedEvent],
    target: int,
    fate: str,
    retry: bool,
) -> MeterEvent | None:
    """Plan once and let the event meet its fate; returns what was planned."""
    planned = plan_cell(
        meter,
        Cell(DAY, "org", meter.event_name),
        target,
        "cus",
        recorded,
        NOW,
        retry_rejected=retry,
    )
    if not isinstance(planned, MeterEvent):
        assert planned is None
        return None
    counted = fate in ("accepted", "counted unseen")
    if counted:
        stripe.received.append((planned.identifier, planned.timestamp, planned.value))
    state, code = {
        "accepted": (State.ACCEPTED, None),
        "counted unseen": (State.ACCEPTED, None),  # a lost answer, resolved by asking again
        "lost": (State.REJECTED, NOT_COUNTED),
        "rejected": (State.REJECTED, "meter_event_customer_not_found"),
        "rejected later": (State.REJECTED, "archived_meter"),
    }[fate]
    recorded.append(
        RecordedEvent(
            planned.revision,
            planned.customer,
            planned.value,
            planned.target,
            planned.timestamp,
            state,
            code,
        )
    )
    return planned


@settings(max_examples=400, deadline=None)
@given(
    meter=st.sampled_from(METERS),
    history=st.lists(st.tuples(targets, fates), max_size=12),
    final=targets,
)
def test_whatever_happened_stripe_ends_at_the_target_and_nothing_is_said_twice(
    meter: Meter, history: list[tuple[int, str]], final: int
) -> None:
    stripe, recorded, planned = StripeModel(meter), list[RecordedEvent](), list[MeterEvent]()
    for target, fate in history:
        event = step(meter, stripe, recorded, target, fate, retry=False)
        planned += [event] if event else []
    # The world becomes quiet: what was refused is fixed, and everything is accepted.
    event = step(meter, stripe, recorded, final, "accepted", retry=True)
    planned += [event] if event else []

    assert stripe.total() == final
    assert step(meter, stripe, recorded, final, "accepted", retry=True) is None
    identifiers = [event.identifier for event in planned]
    assert len(set(identifiers)) == len(identifiers)
    assert all(len(identifier) <= 100 for identifier in identifiers)
    stamps = [event.timestamp for event in planned]
    assert stamps == sorted(set(stamps))
    assert all(MIDNIGHT <= stamp < MIDNIGHT + 86_400 for stamp in stamps)


@given(
    organizations=st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True),
    days=st.lists(
        st.dates(date(2000, 1, 1), date(2099, 1, 1)), min_size=1, max_size=4, unique=True
    ),
)
def test_identifiers_of_different_cells_and_revisions_never_meet(
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
    meter = Meter("m", Formula.SUM, Measure.READING_VOLUME)
    assert first.idempotency_key(meter) != again.idempotency_key(meter)
    assert first.idempotency_key(meter) == MeterEvent(cell, 3, "cus_1", 5, 0, 100).idempotency_key(
        meter
    )


@given(
    now=st.integers(0, 52 * 86_400).map(lambda s: datetime.fromtimestamp(MIDNIGHT + s, UTC)),
    earlier=st.none() | st.integers(0, 86_399),
)
def test_an_event_is_never_stamped_where_stripe_would_refuse_it(
    now: datetime, earlier: int | None
) -> None:
    recorded = (
        []
        if earlier is None
        else [RecordedEvent(1, "cus", 5, 5, MIDNIGHT + earlier, State.ACCEPTED)]
    )
    meter = METERS[0]
    planned = plan_cell(meter, Cell(DAY, "org", "sum"), 9, "cus", recorded, now)
    if isinstance(planned, MeterEvent):
        stamp = datetime.fromtimestamp(planned.timestamp, UTC)
        assert now - timedelta(days=34) <= stamp <= now + timedelta(minutes=5)
        assert MIDNIGHT <= planned.timestamp < MIDNIGHT + 86_400
        assert earlier is None or planned.timestamp > MIDNIGHT + earlier
