"""One organization's usage day: what was reported, what was counted, and from which files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

from billing_pipeline.errors import ConfigurationError, UnusableInput
from billing_pipeline.ledger import queries
from billing_pipeline.ledger.queries import CellStory
from billing_pipeline.operations.context import Context
from billing_pipeline.operations.explain.links import Link, summary
from billing_pipeline.rules.model import SENT, Cell, MeterEvent
from billing_pipeline.usage.activity import DAY_ERRORS, activity_totals, load_counted, sensors_of
from billing_pipeline.usage.duplicates import duplicates_of
from billing_pipeline.usage.snapshot import Snapshot, load_snapshot
from billing_pipeline.usage.sources.day_files import folder_name


def explain_day(
    context: Context, organization: str, day: date, meters: Sequence[str]
) -> dict[str, Any]:
    """Everything known about an organization's day, with each link checked.

    Raises ConfigurationError for an organization that is known nowhere, DAY_ERRORS for a
    snapshot that cannot be read.
    """
    snapshot = load_snapshot(context.engine, context.snapshots, day)
    usage = None
    if snapshot is not None:
        usage = next((o for o in snapshot.organizations if o.organization_id == organization), None)
    stories = [
        context.ledger.read(queries.story, Cell(day, organization, meter)) for meter in meters
    ]
    customer = context.customers.mapping(context.settings.billing_customers_file).get(organization)
    if usage is None and customer is None and not any(s.events or s.held for s in stories):
        raise ConfigurationError(
            f"nothing is known of the organization {organization!r} on {day}: no usage, no "
            "report, no customer. Ids are exact, capital letters and spaces included."
        )
    sensors = sensors_of(context.engine, context.snapshots, day, organization)
    links = [link.as_json() for link in _links(context, organization, day, snapshot, stories)]
    return {
        "organization_id": organization,
        "day": day.isoformat(),
        "customer": customer,
        "meters": [_meter(story) for story in stories],
        "snapshot": None
        if snapshot is None
        else {
            "snapshot_id": snapshot.snapshot_id,
            "active_sensors": usage.active_sensors if usage else 0,
            "reading_volume": usage.reading_volume if usage else 0,
            "exact_duplicates": usage.exact_duplicates if usage else 0,
            "conflicting_duplicates": usage.conflicting_duplicates if usage else 0,
            "files": [asdict(file) for file in snapshot.counted.files],
            "rows_read": snapshot.counted.rows_read,
            "quarantined": snapshot.counted.quarantined,
        },
        "sensors": sensors,
        "duplicates": _duplicates(context, organization, day, sensors),
        "links": links,
        "checked": summary(links),
    }


def _meter(story: CellStory) -> dict[str, Any]:
    return {
        "meter": story.cell.event_name,
        "events": story.events,
        "held": story.held[0].as_json() if story.held else None,
        "holds": [held.as_json() for held in story.held],
        "verifications": story.verifications,
        "history": story.history,
    }


def _duplicates(
    context: Context, organization: str, day: date, sensors: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The readings that had more than one row; read from the files again, if there are any."""
    if not any(s["exact_duplicates"] or s["conflicting_duplicates"] for s in sensors):
        return []
    try:
        return duplicates_of(context.engine, context.readings, day, organization)
    except DAY_ERRORS:  # the links say which file is not as it was
        return []


def _links(
    context: Context,
    organization: str,
    day: date,
    snapshot: Snapshot | None,
    stories: Sequence[CellStory],
) -> Iterator[Link]:
    for story in stories:
        yield from _of_events(story)
    if snapshot is not None:
        yield from _of_counts(context, organization, day, snapshot)
        yield from _of_files(context, day, snapshot)


def _of_events(story: CellStory) -> Iterator[Link]:
    """The reports: identifiers, histories, and Stripe's figure when it was last read."""
    meter = story.cell.event_name
    if not story.events:
        return
    wrong = [
        event["revision"]
        for event in story.events
        if event["identifier"]
        != MeterEvent(
            story.cell,
            event["revision"],
            event["customer"],
            event["value"],
            event["target"],
            event["timestamp"],
        ).identifier
    ]
    yield Link(
        f"{meter}: identifiers come from cell and revision",
        not wrong,
        f"{len(story.events)} recomputed" if not wrong else f"not of revisions {wrong}",
    )
    states = {row["revision"]: row["to_state"] for row in story.history if row["revision"]}
    wrong = [e["revision"] for e in story.events if states.get(e["revision"]) != e["state"]]
    yield Link(
        f"{meter}: the history of each event ends in its state",
        not wrong,
        f"{len(story.history)} changes" if not wrong else f"not of revisions {wrong}",
    )
    outside = [
        event["revision"]
        for event in story.events
        if datetime.fromtimestamp(event["timestamp"], UTC).date() != story.cell.usage_day
    ]
    yield Link(
        f"{meter}: every event is stamped inside the day",
        not outside,
        "" if not outside else f"not revisions {outside}",
    )
    if any(event["state"] in SENT for event in story.events):
        for look in story.verifications:
            agrees = look["outcome"] == "agrees"
            yield Link(
                f"{meter}: Stripe's summary of the day is the ledger's figure",
                agrees if look["outcome"] != "lagging" else None,
                f"Stripe {look['reported']}, ledger {look['expected']}, on {look['checked_at']}",
            )


def _of_counts(
    context: Context, organization: str, day: date, snapshot: Snapshot
) -> Iterator[Link]:
    """The snapshot: made from the present sensor activity, every row accounted for."""
    counted = load_counted(context.snapshots, day)
    window = context.settings.billing_active_window_days
    yield Link(
        "the snapshot was taken from the present sensor activity",
        counted is not None and snapshot.window[-1] == counted.activity_id,
        f"activity {snapshot.window[-1][:16]}…",
    )
    try:
        days = [day - timedelta(days=back) for back in range(window - 1, -1, -1)]
        totals = activity_totals(context.engine, context.snapshots, days)
        active, volume = totals.get(organization, (0, 0))
    except DAY_ERRORS as error:
        yield Link("the sensors add up to the snapshot", False, f"they cannot be read: {error}")
    else:
        mine = [o for o in snapshot.organizations if o.organization_id == organization]
        counts = [(o.active_sensors, o.reading_volume) for o in mine] or [(0, 0)]
        yield Link(
            "the sensors add up to the snapshot",
            counts == [(active, volume)],
            f"{active} active sensors, {volume} readings",
        )
    day_counts = snapshot.counted
    yield Link(
        "every row of the day is accounted for",
        day_counts.conserved,
        f"{day_counts.rows_read} rows = {day_counts.readings} readings + "
        f"{day_counts.duplicates} duplicates + {day_counts.quarantined_rows} in quarantine",
    )


def _of_files(context: Context, day: date, snapshot: Snapshot) -> Iterator[Link]:
    """The files: still there, with the content that was counted."""
    for file in snapshot.counted.files:
        try:
            same = context.readings.sha256(folder_name(day), file.name) == file.sha256
        except (OSError, UnusableInput) as error:
            yield Link(f"{file.name} is as it was counted", False, str(error))
        else:
            message = f"sha256 {file.sha256[:16]}…, {file.size} bytes, {file.rows} rows"
            yield Link(f"{file.name} is as it was counted", same, message)
