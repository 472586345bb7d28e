"""Exact counting of a day: from its readings to sensor activity, one row per sensor.

The activity file holds, in its own metadata, the files that it was counted from, so that a crash
cannot make the two disagree. Every count is checked for conservation:

    rows read = readings + exact duplicates + conflicting duplicates + quarantined
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
from pyarrow import parquet

from billing_pipeline.errors import BillingError, UnusableInput
from billing_pipeline.usage.engine import Engine, sql
from billing_pipeline.usage.kernel.kernel import KernelCounts, count_plain
from billing_pipeline.usage.kernel.shares import CannotCount
from billing_pipeline.usage.readings import DayReadings, create_readings, keep_rest, name_the_broken
from billing_pipeline.usage.sources.day_files import DayFiles, folder_name, list_day
from billing_pipeline.usage.sources.folders import Folder
from billing_pipeline.usage.spark import SparkCannotRead, SparkUnavailable, count_on_spark

CONTRACT = 1
"""Version of the counting rules; part of every id, so that new rules give new ids."""

ACTIVITY_FILE = "sensor_activity.parquet"
METADATA_KEY = "billing_pipeline"

TRIES = 3
"""How often a day is counted if its files change meanwhile."""

SHOWN_QUARANTINE = 50
"""The most organizations and reasons in the sample of quarantined rows."""


class ConservationError(BillingError):
    """Rows were lost or added while counting. The day fails, and nothing of it is billed."""

    exit_code = 1


DAY_ERRORS = (UnusableInput, ConservationError, SparkUnavailable, duckdb.Error, OSError)
"""The errors of one day's files, of Spark or of the disk: that day fails, other days go on."""


@dataclass(frozen=True)
class FileRead:
    """One file that was counted: `size` in bytes, `rows` as the file declares them."""

    name: str
    size: int
    modified: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class CountedDay:
    """The counts of a day's rows, with the files that they were counted from. Counts are exact."""

    usage_day: date
    folder_exists: bool
    activity_id: str
    files: tuple[FileRead, ...] = ()
    ignored_files: tuple[str, ...] = ()
    rows_read: int = 0
    readings: int = 0
    exact_duplicates: int = 0
    conflicting_duplicates: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    """Rows by reason code."""
    quarantine_sample: tuple[tuple[str, str | None, int], ...] = ()
    """(reason, organization, rows), the largest first, at most SHOWN_QUARANTINE."""
    sensors: int = 0
    method: str = "sql"
    """How it was counted: "kernel", "sql: reason" or "spark". The counts are the same."""

    @property
    def quarantined_rows(self) -> int:
        """Quarantined rows of all reasons."""
        return sum(self.quarantined.values())

    @property
    def duplicates(self) -> int:
        """Rows that repeat a reading of another row."""
        return self.exact_duplicates + self.conflicting_duplicates

    @property
    def conserved(self) -> bool:
        """Whether every row read is accounted for."""
        return self.rows_read == self.readings + self.duplicates + self.quarantined_rows

    def matches(self, listing: DayFiles) -> bool:
        """Whether these are the files that were counted, by name, size and time of change."""
        counted = [(f.name, f.size, f.modified) for f in self.files]
        return (
            self.folder_exists == listing.exists
            and counted == [(f.name, f.size, f.modified) for f in listing.files]
            and self.ignored_files == listing.ignored
        )

    def as_json(self) -> dict[str, Any]:
        """The day's files and counts as a JSON object."""
        return {
            "contract": CONTRACT,
            **asdict(self),
            "usage_day": self.usage_day.isoformat(),
            "duplicates": self.duplicates,
            "quarantined_rows": self.quarantined_rows,
        }

    def summary(self) -> str:
        """The files (name, hash, rows) and counts as JSON, to show later what changed."""
        return json.dumps(
            {
                "files": {f.name: (f.sha256, f.rows) for f in self.files},
                "readings": self.readings,
                "duplicates": self.duplicates,
                "quarantined_rows": self.quarantined_rows,
            }
        )

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> CountedDay:
        """The reverse of `as_json`."""
        known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
        return cls(
            **{
                **known,
                "usage_day": date.fromisoformat(document["usage_day"]),
                "files": tuple(FileRead(**file) for file in document["files"]),
                "ignored_files": tuple(document["ignored_files"]),
                "quarantine_sample": tuple(
                    (reason, organization, rows)
                    for reason, organization, rows in document["quarantine_sample"]
                ),
            }
        )


def day_folder(day: date) -> str:
    """The folder of a usage day's activity and snapshot, below the snapshots' folder."""
    return f"usage_day={day.isoformat()}"


def activity_for(engine: Engine, readings: Folder, snapshots: Folder, day: date) -> CountedDay:
    """The activity of a day, counted again only if its files have changed. Raises DAY_ERRORS."""
    known = load_counted(snapshots, day)
    if known is not None and known.matches(list_day(readings, day)):
        return known
    return count_day(engine, readings, snapshots, day)


def load_counted(snapshots: Folder, day: date) -> CountedDay | None:
    """The counts of a day's activity file; None if there is none of the present contract."""
    if not snapshots.exists(day_folder(day), ACTIVITY_FILE):
        return None
    document = read_metadata(snapshots, day_folder(day), ACTIVITY_FILE)
    with undamaged(snapshots, day_folder(day), ACTIVITY_FILE):
        return CountedDay.from_json(document) if document.get("contract") == CONTRACT else None


def count_day(engine: Engine, readings: Folder, snapshots: Folder, day: date) -> CountedDay:
    """Count a day's readings and replace its activity file.

    If a file changes while it is read, the day is counted again, at most TRIES times. Raises
    DAY_ERRORS, UnusableInput with the file's name; then the old activity file stays.
    """
    for _ in range(TRIES):
        listing = list_day(readings, day)
        with engine.connect(readings, snapshots) as connection:
            counted = _count(engine, connection, readings, listing)
            if list_day(readings, day) == listing:
                _write(connection, snapshots, counted)
                return counted
    raise UnusableInput(
        f"{folder_name(day)} changed each of the {TRIES} times that it was read; "
        "count it again when its writer has finished"
    )


def _count(
    engine: Engine, connection: duckdb.DuckDBPyConnection, readings: Folder, listing: DayFiles
) -> CountedDay:
    day = create_readings(connection, readings, listing)
    try:
        method = _count_rows(engine, connection, readings, listing, day)
    except duckdb.OutOfMemoryException:  # not the fault of a file
        raise
    except (duckdb.Error, SparkCannotRead) as error:
        raise name_the_broken(connection, readings, listing, error) from None
    [(distinct, exact, conflicting, sensors)] = connection.execute(sql("totals")).fetchall()
    quarantine = connection.execute(sql("quarantine")).fetchall()
    by_reason: dict[str, int] = {}
    for reason, _, number in quarantine:
        by_reason[reason] = by_reason.get(reason, 0) + number
    files = _files_read(readings, listing, day)
    counted = CountedDay(
        listing.usage_day,
        listing.exists,
        _activity_id(listing.usage_day, files),
        files,
        listing.ignored,
        sum(day.rows.values()),
        distinct,
        exact,
        conflicting,
        dict(sorted(by_reason.items())),
        tuple(quarantine[:SHOWN_QUARANTINE]),
        sensors,
        method,
    )
    if not counted.conserved:
        raise ConservationError(
            f"{folder_name(listing.usage_day)}: {counted.rows_read} rows read, but "
            f"{counted.readings} readings + {counted.duplicates} duplicates + "
            f"{counted.quarantined_rows} quarantined.",
            "This is a defect of the pipeline; please report it.",
        )
    return counted


def _files_read(readings: Folder, listing: DayFiles, day: DayReadings) -> tuple[FileRead, ...]:
    folder = folder_name(listing.usage_day)
    return tuple(
        FileRead(f.name, f.size, f.modified, readings.sha256(folder, f.name), day.rows[f.name])
        for f in listing.files
    )


def _activity_id(day: date, files: Sequence[FileRead]) -> str:
    content = [CONTRACT, day.isoformat(), [(f.name, f.sha256) for f in files]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _count_rows(
    engine: Engine,
    connection: duckdb.DuckDBPyConnection,
    readings: Folder,
    listing: DayFiles,
    day: DayReadings,
) -> str:
    """Make the table `counted`; returns the `method` of CountedDay."""
    count = f"CREATE TEMP TABLE counted AS {sql('count')}"
    try:
        if engine.spark is not None:
            counted_by_spark, method = count_on_spark(
                engine.spark, engine.memory_limit, connection, readings, listing.usage_day, day
            )
            with _registered(connection, "spark_counts", counted_by_spark):
                connection.execute("CREATE TEMP TABLE counted AS FROM spark_counts")
            return method
        with engine.spill() as spill:
            counted_by_kernel = _count_with_kernel(engine, readings, listing, spill)
            keep_rest(connection, counted_by_kernel.odd, counted_by_kernel.unlike)
            connection.execute(count)
            with _registered(connection, "kernel_counts", counted_by_kernel.activity):
                connection.execute(sql("add_kernel_counts"))
            return "kernel"
    except CannotCount as reason:
        connection.execute(count)
        return f"sql: {reason}"


def _count_with_kernel(
    engine: Engine, readings: Folder, listing: DayFiles, spill: Path
) -> KernelCounts:
    if not engine.kernel:
        raise CannotCount("the kernel is switched off")
    return count_plain(readings, listing, spill, engine.kernel_limits)


@contextmanager
def _registered(connection: duckdb.DuckDBPyConnection, name: str, table: Any) -> Iterator[None]:
    connection.register(name, table)
    yield
    connection.unregister(name)


def _write(connection: duckdb.DuckDBPyConnection, snapshots: Folder, counted: CountedDay) -> None:
    connection.execute(
        f"CREATE TEMP TABLE activity AS {sql('activity')}",
        {"usage_day": counted.usage_day.isoformat()},
    )
    with snapshots.replacing(day_folder(counted.usage_day), ACTIVITY_FILE) as draft:
        write_parquet(connection, "activity", str(draft), counted.as_json())


def write_parquet(
    connection: duckdb.DuckDBPyConnection, table: str, path: str, document: dict[str, Any]
) -> None:
    """Write a table as Parquet, with a JSON document in the file's metadata."""
    text = json.dumps(document).replace("'", "''")
    connection.execute(
        f"COPY {table} TO '{path.replace(chr(39), chr(39) * 2)}' "
        f"(FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{METADATA_KEY}: '{text}'}})"
    )


def read_metadata(snapshots: Folder, *path: str) -> dict[str, Any]:
    """The JSON document in a Parquet file's metadata, empty if there is none.

    Raises OSError for a file that is not Parquet.
    """
    with undamaged(snapshots, *path), snapshots.open(*path) as file:
        metadata = parquet.read_metadata(file).metadata or {}
        document = metadata.get(METADATA_KEY.encode())
        return {} if document is None else dict(json.loads(document))


@contextmanager
def undamaged(snapshots: Folder, *path: str) -> Iterator[None]:
    """Turn an error of reading a file's content into an OSError with the file's name."""
    try:
        yield
    except (pyarrow.ArrowException, ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"{snapshots.path(*path)} is damaged and cannot be read ({error}); count its day again"
        ) from None


def proven_by(
    engine: Engine, readings: Folder, snapshots: Folder, days: Sequence[date]
) -> dict[str, tuple[int, int]]:
    """By organization: sensors with a reading on any of these days, and readings on the last day.

    Counts a day again if its files have changed. Raises DAY_ERRORS.
    """
    for day in days:
        activity_for(engine, readings, snapshots, day)
    return activity_totals(engine, snapshots, days)


def activity_totals(
    engine: Engine, snapshots: Folder, days: Sequence[date]
) -> dict[str, tuple[int, int]]:
    """The same from the sensor activity as stored, even if files have changed since."""
    paths = [snapshots.pattern(day_folder(day), ACTIVITY_FILE) for day in days]
    with engine.connect(snapshots) as connection:
        rows = connection.execute(
            "SELECT organization_id, count(DISTINCT sensor_id), "
            "coalesce(sum(readings) FILTER (WHERE usage_day = ?), 0)::BIGINT "
            "FROM read_parquet(?) GROUP BY organization_id",
            [days[-1], paths],
        ).fetchall()
    return {organization: (active, volume) for organization, active, volume in rows}


def sensors_of(
    engine: Engine, snapshots: Folder, day: date, organization_id: str
) -> list[dict[str, Any]]:
    """One organization's sensor activity of a day as rows; none if the day was not counted."""
    if not snapshots.exists(day_folder(day), ACTIVITY_FILE):
        return []
    with engine.connect(snapshots) as connection:
        result = connection.execute(
            "SELECT sensor_id, readings, first_at, last_at, exact_duplicates, "
            "conflicting_duplicates FROM read_parquet(?) WHERE organization_id = ? "
            "ORDER BY sensor_id",
            [snapshots.pattern(day_folder(day), ACTIVITY_FILE), organization_id],
        )
        names = [column[0] for column in result.description]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    return [{**r, "first_at": str(r["first_at"]), "last_at": str(r["last_at"])} for r in rows]
