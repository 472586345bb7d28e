"""Evidence: what Stripe's summaries should show, and what they did show."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Row, select, tuple_, update

from billing_pipeline.database import upsert_all
from billing_pipeline.ledger.events import Outcome, change_state
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.rows import CHUNK
from billing_pipeline.ledger.tables import meter_errors, meter_events, meters, verifications
from billing_pipeline.rules.agreement import Agreement
from billing_pipeline.rules.model import SENT, State
from billing_pipeline.rules.segments import segments_between
from billing_pipeline.stripe_facts import CLOCKS_APART, CUSTOMER_NOT_FOUND, TAKE_BACK_AFTER

WORST: tuple[Agreement, ...] = ("agrees", "lagging", "mismatch")


@dataclass(frozen=True, slots=True)
class ExpectedFigure:
    """What Stripe's summary of one customer, meter and day should show, by the ledger.

    A meter that keeps one value shows only the last one of a day. The segments of such a day are
    compared one by one: `segment` is [start, end) of one. `certain` is the value that was verified
    before, `pending` are the values accepted since, in the order of their revisions; `expected` is
    what both come to. `last_accepted_at` tells how long Stripe has had to agree.
    """

    usage_day: date
    customer: str
    event_name: str
    expected: int
    certain: int | None
    pending: tuple[int, ...]
    pending_ids: tuple[int, ...]
    pending_since: tuple[datetime, ...]
    last_accepted_at: datetime
    timestamp: int
    """Timestamp of the newest event (unix seconds)."""
    segment: tuple[int, int] | None = None

    @property
    def has_changed(self) -> bool:
        """Whether something was reported after a value of the same day had been reported."""
        return bool(self.pending) and (self.certain is not None or len(self.pending) > 1)


@dataclass(frozen=True, slots=True)
class Before:
    """The values before an instant on a meter that keeps one value.

    `newest` is the last one that Stripe accepted. `value` is the newest one that its summary has
    shown (0: none); `followed_by` are later ones that it may have or not. `since` is the timestamp
    of the first of all these (unix seconds), `last_accepted_at` when Stripe accepted the latest of
    `followed_by`; None if it accepted none.
    """

    newest: int
    value: int
    since: int
    followed_by: tuple[int, ...]
    last_accepted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of one comparison with Stripe's summary."""

    figure: ExpectedFigure
    reported: str
    outcome: str  # agrees, lagging or mismatch
    missing: tuple[int, ...] = ()
    """Row ids of pending events that Stripe does not show."""
    customer_gone: bool = False
    """Whether Stripe does not know the customer at all."""


def expected_figures(
    connection: Connection,
    days: Sequence[date],
    replacing: Mapping[str, bool],
    *,
    unverified_only: bool,
) -> list[ExpectedFigure]:
    """What Stripe should show for each customer, meter and day with accepted events.

    `replacing` tells by event name whether newer values replace older ones. `unverified_only`:
    only if some event of it is not verified yet.
    """
    columns = meter_events.c
    query = (
        select(meter_events)
        .where(
            columns.state.in_(SENT), columns.usage_day.in_(days), columns.event_name.in_(replacing)
        )
        .order_by(columns.timestamp, columns.revision)
    )
    if unverified_only:
        accepted = meter_events.alias()
        place = ("usage_day", "customer", "event_name")
        query = query.where(
            tuple_(*(columns[name] for name in place)).in_(
                select(*(accepted.c[name] for name in place)).where(
                    accepted.c.state == State.ACCEPTED, accepted.c.usage_day.in_(days)
                )
            )
        )
    groups: dict[tuple[date, str, str], list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        groups[row.usage_day, row.customer, row.event_name].append(row)
    found = [
        _expected_figure(key, inside, segment, replacing[key[2]])
        for key, events in sorted(groups.items())
        for segment, inside in _by_segment(events, replaces=replacing[key[2]])
    ]
    return [s for s in found if s.pending_ids or not unverified_only]


def _by_segment(
    events: list[Row[Any]], *, replaces: bool
) -> list[tuple[tuple[int, int] | None, list[Row[Any]]]]:
    """The events of one day by segment, on a meter that keeps one value."""
    named = [(e.segment_start, e.segment_end) for e in events if e.segment_start is not None]
    segments = segments_between(
        events[0].usage_day, [boundary for segment in named for boundary in segment]
    )
    if not replaces or len(segments) == 1:
        return [(None, events)]
    within = [
        (segment, [e for e in events if segment[0] <= e.timestamp < segment[1]])
        for segment in segments
    ]
    return [(segment, inside) for segment, inside in within if inside]


def _expected_figure(
    key: tuple[date, str, str],
    events: list[Row[Any]],
    segment: tuple[int, int] | None,
    replaces: bool,
) -> ExpectedFigure:
    verified = [e.value for e in events if e.state == State.VERIFIED]
    pending = [e for e in events if e.state == State.ACCEPTED]
    if replaces:
        expected, certain = events[-1].value, (verified[-1] if verified else None)
    else:
        expected, certain = (sum(e.value for e in events), (sum(verified) if verified else None))
    return ExpectedFigure(
        *key,
        expected,
        certain,
        tuple(e.value for e in pending),
        tuple(e.id for e in pending),
        tuple(e.accepted_at for e in pending),
        max(e.accepted_at for e in events),
        events[-1].timestamp,
        segment,
    )


def record_checks(writer: Writer, checks: Sequence[Checked], now: datetime) -> None:
    """Keep the checks against Stripe's summaries; where they agree, mark the events verified.

    An event is rejected if Stripe does not show it, and has reported an error without naming it.
    """
    # The worst of several checks of one day's segments is kept.
    rows = [
        {
            "usage_day": check.figure.usage_day,
            "customer": check.figure.customer,
            "event_name": check.figure.event_name,
            "expected": check.figure.expected,
            "reported": check.reported,
            "outcome": check.outcome,
            "checked_at": now,
            "run": writer.run,
        }
        for check in sorted(checks, key=lambda c: (*_place(c.figure), WORST.index(c.outcome)))
    ]
    key = ["usage_day", "customer", "event_name"]
    upsert_all(writer.connection, verifications, key, rows)
    verified: list[int] = []
    for check in checks:
        doubted = bool(check.missing) and _reject_unnamed(writer, check, now)
        if check.outcome == "agrees" and not doubted:
            verified += check.figure.pending_ids
    outcomes = [Outcome(id, State.VERIFIED) for id in verified]
    change_state(writer, outcomes, now, was={State.ACCEPTED})


def _place(expected: ExpectedFigure) -> tuple[date, str, str]:
    return expected.usage_day, expected.customer, expected.event_name


def _reject_unnamed(writer: Writer, check: Checked, now: datetime) -> bool:
    """Reject what Stripe does not show, if an error report tells of errors that it did not name.

    Returns whether such a report casts doubt on this figure. A customer that Stripe does not know
    is believed at once; otherwise the summary gets TAKE_BACK_AFTER to show the events.
    """
    figure, connection = check.figure, writer.connection
    unknown = meter_errors.c.code == CUSTOMER_NOT_FOUND
    report = connection.execute(
        select(meter_errors)
        .join(meters, meters.c.meter_id == meter_errors.c.meter_id)
        .where(
            meters.c.event_name == figure.event_name,
            unknown if check.customer_gone else ~unknown,
            meter_errors.c.errors - meter_errors.c.matched >= len(check.missing),
            meter_errors.c.window_start <= min(figure.pending_since) + CLOCKS_APART,
            meter_errors.c.window_end >= max(figure.pending_since) - CLOCKS_APART,
        )
        .order_by(meter_errors.c.window_end.desc(), meter_errors.c.errors.desc())
        .limit(1)
    ).one_or_none()
    if report is None:
        return False
    if not check.customer_gone and now - figure.last_accepted_at < TAKE_BACK_AFTER:
        return True
    message = f"reported by {report.event_id}: not named, and not in Stripe's summary"
    outcomes = [
        Outcome(id, State.REJECTED, error_code=report.code, error_message=message)
        for id in check.missing
    ]
    rejected = change_state(writer, outcomes, now, was={State.ACCEPTED})
    connection.execute(
        update(meter_errors)
        .where(meter_errors.c.event_id == report.event_id, meter_errors.c.code == report.code)
        .values(matched=meter_errors.c.matched + len(rejected))
    )
    return True


def doubt_zeros_after(writer: Writer, checks: Sequence[Checked], now: datetime) -> set[date]:
    """Have the zeros that follow these values verified again.

    Until a value is verified, nothing shows whether the zero after it was counted; see
    `summaries.figure_of_a_zero`. Returns the days of the zeros that follow directly.
    """
    columns = meter_events.c
    zeros: list[Row[*tuple[Any, ...]]] = []
    for start in range(0, len(checks), CHUNK):
        values = [check.figure for check in checks[start : start + CHUNK]]
        later = writer.connection.execute(
            select(
                columns.id,
                columns.customer,
                columns.event_name,
                columns.value,
                columns.timestamp,
                columns.usage_day,
            )
            .where(
                tuple_(columns.customer, columns.event_name).in_(
                    {(value.customer, value.event_name) for value in values}
                ),
                columns.timestamp > min(value.timestamp for value in values),
                columns.state.in_(SENT),
            )
            .order_by(columns.timestamp)
        )
        by_place = defaultdict(list)
        for row in later:
            by_place[row.customer, row.event_name].append(row)
        for value in values:
            rows = by_place[value.customer, value.event_name]
            after = bisect_right(rows, value.timestamp, key=lambda row: row.timestamp)
            if after < len(rows) and not rows[after].value:
                zeros.append(rows[after])
    message = "to be verified again: the value before it is new"
    again = {row.id: Outcome(row.id, State.ACCEPTED, error_message=message) for row in zeros}
    change_state(writer, list(again.values()), now, was={State.VERIFIED})
    return {row.usage_day for row in zeros}


def newest_before(
    connection: Connection, event_name: str, customer: str, timestamp: int
) -> Before | None:
    """What Stripe accepted for a customer before `timestamp` (unix seconds); None: nothing."""
    columns = meter_events.c
    earlier = [
        columns.customer == customer,
        columns.event_name == event_name,
        columns.timestamp < timestamp,
    ]
    shown = connection.execute(
        select(columns.value, columns.timestamp)
        .where(*earlier, columns.state == State.VERIFIED)
        .order_by(columns.timestamp.desc())
        .limit(1)
    ).one_or_none()
    if shown is not None:
        earlier.append(columns.timestamp > shown.timestamp)
    after = connection.execute(
        select(columns.value, columns.timestamp, columns.state, columns.accepted_at)
        .where(*earlier, columns.state.in_([State.ACCEPTED, State.SENDING, State.AMBIGUOUS]))
        .order_by(columns.timestamp)
    ).all()
    taken = [] if shown is None else [shown.value]
    taken += [row.value for row in after if row.state == State.ACCEPTED]
    if not taken:
        return None
    return Before(
        taken[-1],
        0 if shown is None else shown.value,
        after[0].timestamp if shown is None else shown.timestamp,
        tuple(row.value for row in after),
        max((row.accepted_at for row in after if row.accepted_at is not None), default=None),
    )
