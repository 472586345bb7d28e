"""Counting on Spark: `sql/count.sql`, run there over the day's Parquet files.

DuckDB runs the same text, so there is one definition of what counts. What differs by engine is
how a Parquet type becomes text, an instant and a value, and that stands in the tables below. Files
of other types and formats are read by DuckDB, here, and their rows handed over: how a CSV's time
or a decimal's value reads is decided in one place only.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from datetime import date
from functools import cache, reduce
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from billing_pipeline.usage.engine import sql
from billing_pipeline.usage.kernel.limits import in_bytes
from billing_pipeline.usage.kernel.shares import CannotTake
from billing_pipeline.usage.readings import DayReadings, ParquetFiles, day_start_ns, union
from billing_pipeline.usage.sources.day_files import folder_name
from billing_pipeline.usage.sources.folders import Folder

_DAY_NS = 86_400 * 10**9

# The type that Spark reads for what DuckDB names so. Nanoseconds come as they lie, as integers.
_INTEGERS = {
    "TINYINT": "TINYINT", "SMALLINT": "SMALLINT", "INTEGER": "INT", "BIGINT": "BIGINT",
    "UTINYINT": "SMALLINT", "USMALLINT": "INT", "UINTEGER": "BIGINT", "UBIGINT": "DECIMAL(20,0)",
}  # fmt: skip
_IDS = {**_INTEGERS, "VARCHAR": "STRING"}
_TIMES = {
    "TIMESTAMP": "TIMESTAMP", "TIMESTAMP WITH TIME ZONE": "TIMESTAMP",
    "TIMESTAMP_NS": "BIGINT", "TIMESTAMPTZ_NS": "BIGINT",
}  # fmt: skip
_VALUES = {**_INTEGERS, "FLOAT": "FLOAT", "DOUBLE": "DOUBLE"}
_BY_COLUMN = {
    "organization_id": _IDS, "sensor_id": _IDS, "recorded_at": _TIMES, "value": _VALUES,
}  # fmt: skip

_SCHEMES = {"s3": "s3a"}
"""Hadoop's names of protocols, where they are not fsspec's."""

_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.parquet.int96RebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    # What cannot be read fails the day; it never becomes a smaller bill.
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
}

KNOCK_SECONDS = 10

MOST_HANDED = 2_000_000
"""Rows that DuckDB reads for Spark are in memory here; with more of them SQL counts the day."""

# How Spark says that it is a file that it cannot read, and not the cluster that fails.
_UNREADABLE = ("FAILED_READ_FILE", "INVALID_UTF8_STRING", "CANNOT_READ_FILE", "PARQUET_TYPE")


class SparkUnavailable(OSError):
    """Spark cannot be reached, or could not finish: nothing is known against any file."""


class SparkCannotRead(Exception):
    """Spark met a file that it cannot read."""


def count_on_spark(
    remote: str,
    memory_limit: str,
    connection: duckdb.DuckDBPyConnection,
    folder: Folder,
    usage_day: date,
    day: DayReadings,
    blanks: str,
) -> tuple[pa.Table, str]:
    """Count a day; returns the rows of `count.sql` and the method, as CountedDay tells it.

    `remote` is "sc://host:port", or "local[n]" for Spark in a process beside this one.
    Raises CannotTake where too much of the day is not for Spark to read: then SQL has to count it.
    Raises SparkUnavailable, SparkCannotRead.
    """
    taken = _taken(connection, folder, usage_day, day)
    by_spark = {name for files in taken for name in files.names}
    handed = sum(rows for name, rows in day.rows.items() if name not in by_spark)
    if handed > MOST_HANDED:
        raise CannotTake(f"{handed:,} rows lie in files that Spark does not read")
    session = _session(remote, memory_limit)
    others = [files for files in day.parquet if files not in taken]
    by_duckdb = connection.sql(union(others)).to_arrow_table()
    errors = _errors()
    try:
        frames = [_scan(session, folder, usage_day, files) for files in taken]
        if by_duckdb.num_rows or not frames:
            frames.append(session.createDataFrame(by_duckdb))
        reduce(lambda one, other: one.unionAll(other), frames).createOrReplaceTempView("readings")
        query = sql("count").replace("$blanks", ":blanks")
        counted = session.sql(query, args={"blanks": blanks}).toArrow()
    except errors as error:
        message = str(error)
        if any(sign in message for sign in _UNREADABLE):
            raise SparkCannotRead(_cause(message)) from error
        _session.cache_clear()
        raise SparkUnavailable(f"Spark could not count {usage_day}: {_cause(message)}") from error
    files = len(day.rows) - len(by_spark)
    return counted, f"spark; {files} file(s) read by DuckDB" if files else "spark"


def spark_version(remote: str, memory_limit: str) -> str:
    """The version of the Spark that would count. Raises SparkUnavailable."""
    return str(_session(remote, memory_limit).version)


@cache
def _session(remote: str, memory_limit: str) -> Any:
    """The session of this process: it takes seconds to start, and ends with the process."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SparkUnavailable(
            "BILLING_ENGINE=spark needs PySpark: pip install 'billing-pipeline[spark]'"
        ) from error
    errors: tuple[type[Exception], ...] = (ValueError, *_errors())
    if not remote.startswith("local"):
        _knock(remote)
    try:
        if remote.startswith("local"):
            builder = (
                SparkSession.builder.master(remote)
                .config("spark.driver.memory", f"{in_bytes(memory_limit) // 2**20}m")
                .config("spark.driver.maxResultSize", "0")
                .config("spark.driver.host", "127.0.0.1")
                .config("spark.driver.bindAddress", "127.0.0.1")
                .config("spark.ui.enabled", "false")
                .config("spark.ui.showConsoleProgress", "false")
                .config("spark.log.level", "OFF")  # what goes wrong is raised, and told here
            )
        else:
            builder = SparkSession.builder.remote(remote)
        session = builder.getOrCreate()
        for name, value in _SETTINGS.items():
            session.conf.set(name, value)
    except errors as error:
        # Its own words may quote the address, and with it a token.
        raise SparkUnavailable(
            f"Spark at {_shown(remote)} cannot be used ({type(error).__name__}): look at the "
            "address and its parameters, the server's version, and for local[*] at Java"
        ) from None
    return session


def _shown(remote: str) -> str:
    """The address without its parameters, which may be secrets."""
    return remote.split("/;")[0]


def _knock(remote: str) -> None:
    """Spark's own client would go on trying for ten minutes."""
    where = urlsplit(_shown(remote))
    try:
        socket.create_connection((where.hostname, where.port or 15002), KNOCK_SECONDS).close()
    except (OSError, ValueError) as error:  # the latter: no such port
        raise SparkUnavailable(f"Spark at {where.geturl()} cannot be reached: {error}") from error


def _errors() -> tuple[type[Exception], ...]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return (PySparkException, Py4JError, OSError)  # the last: Spark's process has ended


def _cause(message: str) -> str:
    """The innermost cause of a Java error, else its first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")]
    return ([*causes[-1:], *lines, "no reason given"])[0][:500]


def _taken(
    connection: duckdb.DuckDBPyConnection, folder: Folder, usage_day: date, day: DayReadings
) -> list[ParquetFiles]:
    taken = [
        files
        for files in day.parquet
        if all(kind in _BY_COLUMN[column] for column, kind in files.types.items())
        and not any(name.startswith("_") or ":" in name for name in files.names)
        and not _fixed_length(connection, folder, usage_day, files)
    ]
    # A FLOAT counts by its text, so that 21.1 equals a DOUBLE's 21.1, and only DuckDB writes the
    # texts that DuckDB writes. Among themselves FLOATs are equal if their texts are.
    kinds = {files.types["value"] for files in day.parquet if "value" in files.types}
    if kinds == {"FLOAT"} and sum(len(files.names) for files in taken) == len(day.rows):
        return taken
    return [files for files in taken if files.types.get("value") != "FLOAT"]


def _fixed_length(
    connection: duckdb.DuckDBPyConnection, folder: Folder, usage_day: date, files: ParquetFiles
) -> bool:
    """Whether values are of a type that DuckDB reads as FLOAT or DOUBLE and Spark not at all.

    Halves of a float are, and decimals of more than 38 digits.
    """
    if files.types.get("value") not in ("FLOAT", "DOUBLE"):
        return False
    paths = [folder.pattern(folder_name(usage_day), name) for name in files.names]
    found = connection.execute(
        "SELECT 1 FROM parquet_schema(?) WHERE name = 'value' AND type NOT IN ('FLOAT', 'DOUBLE')",
        [paths],
    )
    return bool(found.fetchall())


def _scan(session: Any, folder: Folder, usage_day: date, files: ParquetFiles) -> Any:
    schema = ", ".join(f"{c} {_BY_COLUMN[c][kind]}" for c, kind in files.types.items())
    paths = [_path(folder, folder_name(usage_day), name) for name in files.names]
    return session.read.schema(schema).parquet(*paths).selectExpr(*_columns(usage_day, files))


def _path(folder: Folder, *parts: str) -> str:
    """For Spark, which as well takes every path for a pattern: one that matches itself."""
    path = re.sub(r"[\\*?\[\]{}]", lambda magic: rf"\{magic.group()}", folder.path(*parts))
    if folder.is_local:
        return f"file:{path}"
    scheme, rest = path.split("://", 1)
    return f"{_SCHEMES.get(scheme, scheme)}://{rest}"


def _columns(usage_day: date, files: ParquetFiles) -> Sequence[str]:
    """See the same in `readings`, for DuckDB."""
    start = day_start_ns(usage_day)
    if _TIMES[files.types["recorded_at"]] == "BIGINT":
        since = f"recorded_at - {start}"
        inside = f"recorded_at >= {start} AND recorded_at < {start + _DAY_NS}"
    else:
        ticks, start = "unix_micros(recorded_at)", start // 1000
        since = f"({ticks} - {start}) * 1000"
        inside = f"{ticks} >= {start} AND {ticks} < {start + _DAY_NS // 1000}"
    return (
        f"{_text('organization_id', files)} AS organization_id",
        f"{_text('sensor_id', files)} AS sensor_id",
        f"CASE WHEN recorded_at IS NULL THEN -1L WHEN {inside} THEN {since} ELSE -3L END "
        "AS instant",
        f"CAST({'value' if 'value' in files.types else 'NULL'} AS DOUBLE) AS value_number",
        "CAST(NULL AS STRING) AS value_text",
    )


def _text(column: str, files: ParquetFiles) -> str:
    if files.types[column] == "VARCHAR":
        return f"validate_utf8({column})"
    return f"CAST({column} AS STRING)"
