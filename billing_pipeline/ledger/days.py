"""Days: what each was planned from, and what the ledger knows of it, many days at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime

from sqlalchemy import Connection, and_, func, select

from billing_pipeline.database import upsert
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.queries import refused_events
from billing_pipeline.ledger.rows import CHUNK, same_cell
from billing_pipeline.ledger.tables import adjustment_entries, days, holds, meter_events
from billing_pipeline.rules.day_inputs import EventCounts, InputsDigest, PlannedFrom
from billing_pipeline.rules.model import UNRESOLVED, State


def store_planned_from(
    writer: Writer, day: date, planned: PlannedFrom | None, counted: str | None, now: datetime
) -> None:
    """Keep what a day was planned from; None if it has to be planned again.

    `counted` are its files and counts, as `CountedDay.summary` gives them.
    """
    row = {
        "planned_from": None if planned is None else planned.digest.as_text(),
        "deadline": None if planned is None else planned.deadline,
        "look_again": planned is None,
        "planned_at": now,
        "run": writer.run,
        "counted": counted,
    }
    upsert(writer.connection, days, {"usage_day": day}, row)


def planned_from(connection: Connection, which: Collection[date]) -> dict[date, PlannedFrom]:
    """What these days were planned from; without the days that were not planned whole."""
    rows = connection.execute(
        select(days.c.usage_day, days.c.planned_from, days.c.deadline).where(
            days.c.usage_day.in_(which), days.c.planned_from.is_not(None)
        )
    )
    return {
        row.usage_day: PlannedFrom(InputsDigest.from_text(row.planned_from), row.deadline)
        for row in rows
    }


def counted_then(connection: Connection, which: Collection[date]) -> dict[date, str]:
    """The files and counts that these days were last planned from."""
    rows = connection.execute(
        select(days.c.usage_day, days.c.counted).where(
            days.c.usage_day.in_(which), days.c.counted.is_not(None)
        )
    )
    return {row.usage_day: row.counted for row in rows}


def event_counts(connection: Connection, which: Collection[date]) -> dict[date, EventCounts]:
    """How many meter events there are of each of these days."""
    by_state: dict[date, dict[str, int]] = defaultdict(dict)
    rows = connection.execute(
        select(meter_events.c.usage_day, meter_events.c.state, func.count())
        # All states: with them named the index answers alone.
        .where(meter_events.c.state.in_(list(State)), meter_events.c.usage_day.in_(which))
        .group_by(meter_events.c.usage_day, meter_events.c.state)
    )
    for day, state, number in rows:
        by_state[day][state] = number
    return {
        day: EventCounts(
            sum(counts.values()),
            counts.get(State.REJECTED, 0),
            sum(counts.get(state, 0) for state in UNRESOLVED),
        )
        for day, counts in by_state.items()
    }


def newest_adjustments(connection: Connection, which: Collection[date]) -> dict[date, int]:
    """The newest adjustment entry of each of these days that has one."""
    entries = adjustment_entries.c
    rows = connection.execute(
        select(entries.usage_day, func.max(entries.id).label("newest"))
        .where(entries.usage_day.in_(which))
        .group_by(entries.usage_day)
    )
    return {row.usage_day: row.newest for row in rows}


def open_organizations(
    connection: Connection, which: Collection[date]
) -> dict[date, dict[str, set[str]]]:
    """The organizations with usage on hold or refused, by day, with the customers of its events."""
    found: dict[date, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    on_hold = (
        select(holds.c.usage_day, holds.c.organization_id, meter_events.c.customer)
        .join(meter_events, and_(*same_cell(meter_events, holds)), isouter=True)
        .where(holds.c.usage_day.in_(which))
    )
    events = meter_events.c
    refused = refused_events().with_only_columns(
        events.usage_day, events.organization_id, events.customer
    )
    for query in (on_hold, refused.where(events.usage_day.in_(which))):
        for day, organization, customer in connection.execute(query.distinct()):
            found[day][organization] |= {customer} - {None}
    return found


def without_cell(
    connection: Connection, day: date, organizations: Collection[str], event_names: Sequence[str]
) -> set[str]:
    """Those of these organizations without a report or a hold on one of these meters."""
    missing = set[str]()
    for event_name in event_names:
        there = set[str]()
        for table in (meter_events, holds):
            there |= set(
                connection.scalars(
                    select(table.c.organization_id)
                    .where(table.c.usage_day == day, table.c.event_name == event_name)
                    .distinct()
                )
            )
        missing |= set(organizations) - there
    return missing


def reported_to(
    connection: Connection, customers: Mapping[date, Collection[str]]
) -> dict[date, set[tuple[str, str]]]:
    """(organization, customer) of all that was ever reported for these customers, by day."""
    columns, found = meter_events.c, defaultdict[date, set[tuple[str, str]]](set)
    for day, names in customers.items():
        wanted = sorted(names)
        for start in range(0, len(wanted), CHUNK):
            rows = connection.execute(
                select(columns.organization_id, columns.customer)
                .where(
                    columns.usage_day == day, columns.customer.in_(wanted[start : start + CHUNK])
                )
                .distinct()
            )
            found[day] |= {(row.organization_id, row.customer) for row in rows}
    return found


def days_to_look_at(connection: Connection) -> set[date]:
    """Days of any age that planning may concern: marked, unresolved, on hold, or refused."""
    queries = (
        select(days.c.usage_day).where(days.c.look_again),
        select(holds.c.usage_day),
        refused_events().with_only_columns(meter_events.c.usage_day),
    )
    found = {day for query in queries for day in connection.scalars(query.distinct())}
    return found | unresolved_days(connection)


def unresolved_days(connection: Connection) -> set[date]:
    """Days with events whose outcome is not known."""
    query = select(meter_events.c.usage_day).where(meter_events.c.state.in_(list(UNRESOLVED)))
    return set(connection.scalars(query.distinct()))


def unverified_days(connection: Connection, since: date) -> set[date]:
    """Days from `since` on with events that Stripe accepted and that are not verified yet."""
    query = select(meter_events.c.usage_day).where(
        meter_events.c.state == State.ACCEPTED, meter_events.c.usage_day >= since
    )
    return set(connection.scalars(query.distinct()))
