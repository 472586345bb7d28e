"""Exact counting of a day: from its readings to sensor activity, one row per sensor.

The activity file carries, in its own metadata, the inputs it was counted from; so the two can
never disagree, whatever crashes. The asserted law of conservation:

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

from billing_pipeline.errors import UnusableInput
from billing_pipeline.usage.engine import Engine, sql
from billing_pipeline.usage.kernel.kernel import KernelCounts, count_plain
from billing_pipeline.usage.kernel.shares import CannotTake
from billing_pipeline.usage.readings import (
    DayReadings,
    create_readings,
    leave_over,
    name_the_broken,
)
from billing_pipeline.usage.sources.day_files import (
    DayInputs,
    folder_name,
    list_day,
)
from billing_pipeline.usage.sources.folders import Folder
from billing_pipeline.usage.spark import SparkCannotRead, count_on_spark

CONTRACT = 1
"""Version of the counting rules; part of every id, so that new rules give new ids."""

ACTIVITY_FILE = "sensor_activity.parquet"
METADATA_KEY = "billing_pipeline"

BLANKS = "".join(map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
                           0x2028, 0x2029, 0x202F, 0x205F, 0x3000)))  # fmt: skip
"""Every white space character of Unicode: an id made of these alone is blank."""

TRIES = 3
SHOWN_QUARANTINE = 50


class ConservationError(Exception):
    """Rows were lost or made while counting. Nothing may be billed from such a day."""


DAY_ERRORS = (UnusableInput, ConservationError, duckdb.Error, OSError)
"""What one day's files or the disk can do: that day fails, the others go on."""


@dataclass(frozen=True)
class FileRead:
    """One input file: size in bytes, rows as the file itself declares them."""

    name: str
    size: int
    modified: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class CountedDay:
    """What became of a day's rows. All counts are exact."""

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
    """How it was counted, "kernel", "sql: why" or "spark"; the counts are the same either way."""

    @property
    def quarantined_rows(self) -> int:
        """Quarantined rows of all reasons."""
        return sum(self.quarantined.values())

    @property
    def duplicates(self) -> int:
        """Rows removed because another row is the same reading."""
        return self.exact_duplicates + self.conflicting_duplicates

    @property
    def conserved(self) -> bool:
        """Whether every row read is accounted for."""
        return self.rows_read == self.readings + self.duplicates + self.quarantined_rows

    def matches(self, inputs: DayInputs) -> bool:
        """Whether this was counted from just these files."""
        counted = [(f.name, f.size, f.modified) for f in self.files]
        return (
            self.folder_exists == inputs.exists
            and counted == [(f.name, f.size, f.modified) for f in inputs.files]
            and self.ignored_files == inputs.ignored
        )

    def as_json(self) -> dict[str, Any]:
        """The day's inputs and counts as a JSON object."""
        return {
            "contract": CONTRACT,
            **asdict(self),
            "usage_day": self.usage_day.isoformat(),
            "duplicates": self.duplicates,
            "quarantined_rows": self.quarantined_rows,
        }

    def summary(self) -> str:
        """The day's files (name, hash, rows) and counts as JSON, to tell later what changed."""
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
    """Where a usage day's activity and snapshot lie below the snapshots' folder."""
    return f"usage_day={day.isoformat()}"


def activity_for(engine: Engine, readings: Folder, snapshots: Folder, day: date) -> CountedDay:
    """The activity of a day as it lies there, counted again only if its files have changed.

    Raises UnusableInput, ConservationError.
    """
    known = load_counted(snapshots, day)
    if known is not None and known.matches(list_day(readings, day)):
        return known
    return count_day(engine, readings, snapshots, day)


def load_counted(snapshots: Folder, day: date) -> CountedDay | None:
    """What was counted for a day, None where nothing was (by today's rules)."""
    if not snapshots.exists(day_folder(day), ACTIVITY_FILE):
        return None
    document = read_metadata(snapshots, day_folder(day), ACTIVITY_FILE)
    with undamaged(snapshots, day_folder(day), ACTIVITY_FILE):
        return CountedDay.from_json(document) if document.get("contract") == CONTRACT else None


def count_day(engine: Engine, readings: Folder, snapshots: Folder, day: date) -> CountedDay:
    """Count a day's readings and replace its activity file.

    A file that changes while it is read makes the day be counted again, TRIES times at most.
    Raises UnusableInput naming the file; then the activity of before stands.
    """
    for _ in range(TRIES):
        inputs = list_day(readings, day)
        with engine.connect(readings, snapshots) as connection:
            counted = _count(engine, connection, readings, inputs)
            if list_day(readings, day) == inputs:
                _write(connection, snapshots, counted)
                return counted
    raise UnusableInput(
        f"{folder_name(day)} changed each time it was read ({TRIES} times); "
        "count it again when its writer has finished"
    )


def _count(
    engine: Engine, connection: duckdb.DuckDBPyConnection, readings: Folder, inputs: DayInputs
) -> CountedDay:
    day = create_readings(connection, readings, inputs)
    try:
        method = _count_rows(engine, connection, readings, inputs, day)
    except duckdb.OutOfMemoryException:  # no fault of a file's
        raise
    except (duckdb.Error, SparkCannotRead) as error:
        raise name_the_broken(connection, readings, inputs, error) from None
    [(distinct, exact, conflicting, sensors)] = connection.execute(sql("totals")).fetchall()
    quarantine = connection.execute(sql("quarantine")).fetchall()
    by_reason: dict[str, int] = {}
    for reason, _, number in quarantine:
        by_reason[reason] = by_reason.get(reason, 0) + number
    files = tuple(
        FileRead(
            file.name,
            file.size,
            file.modified,
            readings.sha256(folder_name(inputs.usage_day), file.name),
            day.rows[file.name],
        )
        for file in inputs.files
    )
    identity = [
        CONTRACT,
        inputs.usage_day.isoformat(),
        [(f.name, f.sha256) for f in files],
    ]
    counted = CountedDay(
        inputs.usage_day,
        inputs.exists,
        hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        files,
        inputs.ignored,
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
            f"{folder_name(inputs.usage_day)}: {counted.rows_read} rows read, but "
            f"{counted.readings} readings + {counted.duplicates} duplicates + "
            f"{counted.quarantined_rows} quarantined"
        )
    return counted


def _count_rows(
    engine: Engine,
    connection: duckdb.DuckDBPyConnection,
    readings: Folder,
    inputs: DayInputs,
    day: DayReadings,
) -> str:
    """Make the table `counted`; returns the method, as CountedDay tells it."""
    count = f"CREATE TEMP TABLE counted AS {sql('count')}"
    if engine.spark is not None:
        try:
            found, method = count_on_spark(
                engine.spark,
                engine.memory_limit,
                connection,
                readings,
                inputs.usage_day,
                day,
                BLANKS,
            )
        except CannotTake as reason:
            connection.execute(count, {"blanks": BLANKS})
            return f"sql: {reason}"
        connection.register("found", found)
        connection.execute("CREATE TEMP TABLE counted AS FROM found")
        connection.unregister("found")
        return method
    with engine.spill() as spill:
        try:
            counted_by_kernel = _counted_by_kernel(engine, readings, inputs, spill)
        except CannotTake as reason:
            connection.execute(count, {"blanks": BLANKS})
            return f"sql: {reason}"
        leave_over(connection, counted_by_kernel.odd, counted_by_kernel.unlike)
        connection.execute(count, {"blanks": BLANKS})
    connection.register("kernel_counts", counted_by_kernel.activity)
    connection.execute(sql("add_kernel_counts"))
    connection.unregister("kernel_counts")
    return "kernel"


def _counted_by_kernel(
    engine: Engine, readings: Folder, inputs: DayInputs, spill: Path
) -> KernelCounts:
    if not engine.kernel:
        raise CannotTake("the kernel is switched off")
    return count_plain(readings, inputs, spill, engine.kernel_limits, BLANKS)


def _write(connection: duckdb.DuckDBPyConnection, snapshots: Folder, counted: CountedDay) -> None:
    connection.execute(
        f"CREATE TEMP TABLE activity AS {sql('activity')}",
        {"usage_day": counted.usage_day.isoformat()},
    )
    with snapshots.replacing(day_folder(counted.usage_day), ACTIVITY_FILE) as draft:
        write_parquet(connection, "activity", str(draft), counted.as_json())


def write_parquet(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    path: str,
    document: dict[str, Any],
) -> None:
    """Write a table as Parquet with a JSON document in the file's own metadata."""
    text = json.dumps(document).replace("'", "''")
    connection.execute(
        f"COPY {table} TO '{path.replace(chr(39), chr(39) * 2)}' "
        f"(FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{METADATA_KEY}: '{text}'}})"
    )


def read_metadata(snapshots: Folder, *parts: str) -> dict[str, Any]:
    """The JSON document in a Parquet file's metadata, empty when there is none.

    Raises OSError for a file that is no Parquet.
    """
    with undamaged(snapshots, *parts), snapshots.open(*parts) as file:
        kept = parquet.read_metadata(file).metadata or {}
        document = kept.get(METADATA_KEY.encode())
        return {} if document is None else dict(json.loads(document))


@contextmanager
def undamaged(snapshots: Folder, *parts: str) -> Iterator[None]:
    """Raise OSError naming the file where what is read of it is not as it was written."""
    try:
        yield
    except (pyarrow.ArrowException, ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"{snapshots.path(*parts)} cannot be read: damaged ({error}); count its day again"
        ) from None


def proven_by(
    engine: Engine, readings: Folder, snapshots: Folder, days: Sequence[date]
) -> dict[str, tuple[int, int]]:
    """By organization: sensors with a reading on any of these days, and readings on the last.

    From sensor activity that says what the files say now, counted again where they have changed.
    Raises UnusableInput, ConservationError.
    """
    for day in days:
        activity_for(engine, readings, snapshots, day)
    return activity_totals(engine, snapshots, days)


def activity_totals(
    engine: Engine, snapshots: Folder, days: Sequence[date]
) -> dict[str, tuple[int, int]]:
    """The same from the sensor activity that lies there, whatever has become of the files."""
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
    """One organization's sensor activity of a day as rows; none where nothing was counted."""
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
