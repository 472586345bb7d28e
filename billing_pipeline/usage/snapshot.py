"""The usage snapshot: one row per organization and UTC day, replaced as a whole.

Sensors are active at the day's end if they have a reading in [end - window, end). A window of
several days reads the stored activity of the earlier days, not their readings. Like activity, a
snapshot holds its inputs in its own metadata; `inputs.json` beside it repeats them for people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import duckdb

from billing_pipeline.errors import UnusableInput
from billing_pipeline.usage.activity import (
    ACTIVITY_FILE,
    CONTRACT,
    CountedDay,
    activity_for,
    day_folder,
    load_counted,
    read_metadata,
    undamaged,
    write_parquet,
)
from billing_pipeline.usage.engine import Engine, sql
from billing_pipeline.usage.sources.day_files import list_day
from billing_pipeline.usage.sources.folders import Folder

SNAPSHOT_FILE = "usage.parquet"
INPUTS_FILE = "inputs.json"


@dataclass(frozen=True, slots=True, order=True)
class OrganizationUsage:
    """One row of a snapshot."""

    organization_id: str
    active_sensors: int
    reading_volume: int
    exact_duplicates: int
    conflicting_duplicates: int


@dataclass(frozen=True)
class Snapshot:
    """A day's usage by organization, with the files and activity that it was counted from."""

    usage_day: date
    snapshot_id: str
    window: tuple[str, ...]
    """The activity ids of the window's days, the usage day last."""
    counted: CountedDay
    organizations: tuple[OrganizationUsage, ...]
    taken_at: datetime
    """When the readings were listed (UTC)."""

    @property
    def is_whole(self) -> bool:
        """Whether it was taken after the day had ended. Only a whole day may be billed."""
        return self.taken_at >= _end(self.usage_day)


def take_snapshot(
    engine: Engine, readings: Folder, snapshots: Folder, day: date, *, window_days: int = 1
) -> Snapshot:
    """Take a day's snapshot from the activity of its window and replace the old one.

    Days whose activity is missing or whose files have changed are counted first, so that a
    snapshot always shows the present readings. Raises DAY_ERRORS.
    """
    window = [day - timedelta(days=back) for back in range(window_days - 1, -1, -1)]
    taken_at = engine.clock()
    counted = [activity_for(engine, readings, snapshots, each) for each in window]
    paths = [snapshots.pattern(day_folder(each), ACTIVITY_FILE) for each in window]
    with engine.connect(snapshots) as connection:
        try:
            connection.execute(
                f"CREATE TEMP TABLE usage AS {sql('snapshot')}",
                {"window": paths, "today": paths[-1:], "usage_day": day.isoformat()},
            )
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise UnusableInput(
                f"the sensor activity of {window[0]} to {day} cannot be read: {error}; count these "
                "days again with `billing run --recount`"
            ) from None
        organizations = _organizations(connection, "usage")
        ids = tuple(each.activity_id for each in counted)
        snapshot = Snapshot(
            day,
            _id_of(CONTRACT, day, ids, organizations),
            ids,
            counted[-1],
            organizations,
            taken_at,
        )
        connection.execute("ALTER TABLE usage ADD COLUMN snapshot_id VARCHAR")
        connection.execute("UPDATE usage SET snapshot_id = ?", [snapshot.snapshot_id])
        document = _document(snapshot)
        # The snapshot last: once it is current, the day is not counted again.
        with snapshots.replacing(day_folder(day), INPUTS_FILE) as draft:
            draft.write_text(json.dumps(document, indent=2, ensure_ascii=False), "utf-8")
        with snapshots.replacing(day_folder(day), SNAPSHOT_FILE) as draft:
            write_parquet(connection, "usage", str(draft), document)
    return snapshot


def load_snapshot(engine: Engine, snapshots: Folder, day: date) -> Snapshot | None:
    """The stored snapshot of a day; None if there is none."""
    if not snapshots.exists(day_folder(day), SNAPSHOT_FILE):
        return None
    path = snapshots.pattern(day_folder(day), SNAPSHOT_FILE)
    document = read_metadata(snapshots, day_folder(day), SNAPSHOT_FILE)
    with engine.connect(snapshots) as connection:
        connection.execute(
            "CREATE TEMP VIEW usage AS SELECT * FROM read_parquet('{}')".format(
                path.replace("'", "''")
            )
        )
        organizations = _organizations(connection, "usage")
    with undamaged(snapshots, day_folder(day), SNAPSHOT_FILE):
        found = Snapshot(
            day,
            document["snapshot_id"],
            tuple(document["window"]),
            CountedDay.from_json(document),
            organizations,
            datetime.fromisoformat(document["taken_at"]),
        )
        if found.snapshot_id != _id_of(document["contract"], day, found.window, organizations):
            raise ValueError("its counts do not match its id")
    return found


def snapshot_id_of(snapshots: Folder, day: date) -> str | None:
    """The id of a day's snapshot; None if there is none that was taken after the day had ended."""
    if not snapshots.exists(day_folder(day), SNAPSHOT_FILE):
        return None
    document = read_metadata(snapshots, day_folder(day), SNAPSHOT_FILE)
    with undamaged(snapshots, day_folder(day), SNAPSHOT_FILE):
        whole = datetime.fromisoformat(document["taken_at"]) >= _end(day)
        return str(document["snapshot_id"]) if whole else None


def _end(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)


def is_current(readings: Folder, snapshots: Folder, day: date, *, window_days: int = 1) -> bool:
    """Whether a day's snapshot is whole and its window's files are those that were counted.

    Files are compared by name, size and time of change.
    """
    if not snapshots.exists(day_folder(day), SNAPSHOT_FILE):
        return False
    document = read_metadata(snapshots, day_folder(day), SNAPSHOT_FILE)
    with undamaged(snapshots, day_folder(day), SNAPSHOT_FILE):
        if document.get("contract") != CONTRACT or len(document["window"]) != window_days:
            return False
        if datetime.fromisoformat(document["taken_at"]) < _end(day):
            return False
    for back, activity_id in enumerate(reversed(document["window"])):
        each = day - timedelta(days=back)
        counted = load_counted(snapshots, each)
        if counted is None or counted.activity_id != activity_id:
            return False
        if not counted.matches(list_day(readings, each)):
            return False
    return True


def _document(snapshot: Snapshot) -> dict[str, object]:
    return {
        **snapshot.counted.as_json(),
        "snapshot_id": snapshot.snapshot_id,
        "window": list(snapshot.window),
        "taken_at": snapshot.taken_at.isoformat(),
        "organizations": len(snapshot.organizations),
    }


def _organizations(
    connection: duckdb.DuckDBPyConnection, table: str
) -> tuple[OrganizationUsage, ...]:
    rows = connection.execute(
        "SELECT organization_id, active_sensors, reading_volume, exact_duplicates, "
        f"conflicting_duplicates FROM {table} ORDER BY organization_id"
    ).fetchall()
    return tuple(OrganizationUsage(*row) for row in rows)


def _id_of(
    contract: int, day: date, ids: Sequence[str], organizations: Sequence[OrganizationUsage]
) -> str:
    content = [contract, day.isoformat(), list(ids), [_row(o) for o in organizations]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _row(usage: OrganizationUsage) -> list[object]:
    return [getattr(usage, name) for name in OrganizationUsage.__slots__]
