"""Counting on Spark: `sql/count.sql`, run over the day's Parquet files.

DuckDB runs the same text, so that counting has one definition. Engines differ in how a Parquet type
becomes a text, an instant and a value; the tables below give Spark's side. DuckDB reads files of
other types and formats and passes their rows to Spark, so that only one place decides how the time
of a CSV or the value of a decimal is read.
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

from billing_pipeline.errors import BillingError
from billing_pipeline.usage.engine import sql
from billing_pipeline.usage.kernel.limits import in_bytes
from billing_pipeline.usage.kernel.shares import CannotCount
from billing_pipeline.usage.readings import DayReadings, ParquetFiles, day_start_ns, union
from billing_pipeline.usage.sources.day_files import folder_name
from billing_pipeline.usage.sources.folders import Folder

_DAY_NS = 86_400 * 10**9

# Spark's type by DuckDB's name of it. Nanoseconds are read as the integers that they are stored as.
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
"""Hadoop's names of protocols where they differ from fsspec's."""

_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.caseSensitive": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.parquet.int96RebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    # A file that cannot be read fails the day. It never becomes a smaller bill.
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
}

CONNECT_SECONDS = 10

MOST_PASSED = 2_000_000
"""Rows that DuckDB reads for Spark are in memory here. With more of them, SQL counts the day."""

# Signs in Spark's errors that a file cannot be read, and that the cluster works.
_UNREADABLE = ("FAILED_READ_FILE", "INVALID_UTF8_STRING", "CANNOT_READ_FILE", "PARQUET_TYPE")


class SparkUnavailable(BillingError):
    """Spark cannot be reached or did not finish. No file is known to be at fault."""

    exit_code = 1


class SparkCannotRead(Exception):
    """Spark cannot read one of the files."""


def count_on_spark(
    remote: str,
    memory_limit: str,
    connection: duckdb.DuckDBPyConnection,
    folder: Folder,
    usage_day: date,
    day: DayReadings,
) -> tuple[pa.Table, str]:
    """Count a day; returns the rows of `count.sql` and the `method` of CountedDay.

    `remote` is "sc://host:port", or "local[n]" for Spark in a process beside this one. Raises
    CannotCount if Spark reads too little of the day, SparkUnavailable and SparkCannotRead.
    """
    for_spark = _for_spark(connection, folder, usage_day, day)
    by_spark = {name for files in for_spark for name in files.names}
    passed = sum(rows for name, rows in day.rows.items() if name not in by_spark)
    if passed > MOST_PASSED:
        raise CannotCount(f"{passed:,} rows lie in files that Spark does not read")
    session = _session(remote, memory_limit)
    others = [files for files in day.parquet if files not in for_spark]
    by_duckdb = connection.sql(union(others)).to_arrow_table()
    errors = _errors()
    try:
        frames = [_scan(session, folder, usage_day, files) for files in for_spark]
        if by_duckdb.num_rows or not frames:
            frames.append(session.createDataFrame(by_duckdb))
        reduce(lambda one, other: one.unionAll(other), frames).createOrReplaceTempView("readings")
        counted = session.sql(sql("count")).toArrow()
    except errors as error:
        message = str(error)
        if any(sign in message for sign in _UNREADABLE):
            raise SparkCannotRead(_cause(message)) from error
        _session.cache_clear()
        raise SparkUnavailable(f"Spark could not count {usage_day}: {_cause(message)}") from error
    files = len(day.rows) - len(by_spark)
    return counted, f"spark; {files} file(s) read by DuckDB" if files else "spark"


def spark_version(remote: str, memory_limit: str) -> str:
    """The version of the Spark that counts. Raises SparkUnavailable."""
    return str(_session(remote, memory_limit).version)


@cache
def _session(remote: str, memory_limit: str) -> Any:
    """This process's session. It takes seconds to start and ends with the process."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SparkUnavailable(
            "BILLING_ENGINE=spark needs PySpark: pip install 'billing-pipeline[spark]'"
        ) from error
    errors: tuple[type[Exception], ...] = (ValueError, *_errors())
    if not remote.startswith("local"):
        _check_reachable(remote)
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
                .config("spark.log.level", "OFF")  # errors are raised, and shown by us
            )
        else:
            builder = SparkSession.builder.remote(remote)
        session = builder.getOrCreate()
        for name, value in _SETTINGS.items():
            session.conf.set(name, value)
    except errors as error:
        # Spark's message may quote the address, and a token in it.
        raise SparkUnavailable(
            f"Spark at {_shown(remote)} cannot be used ({type(error).__name__}).",
            "Check the address and its parameters, the server's version, and Java for local[*].",
        ) from None
    return session


def _shown(remote: str) -> str:
    """The address without its parameters, which may be secret."""
    return remote.split("/;")[0]


def _check_reachable(remote: str) -> None:
    """Raise SparkUnavailable soon: Spark's own client tries for ten minutes."""
    address = urlsplit(_shown(remote))
    try:
        socket.create_connection((address.hostname, address.port or 15002), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:  # ValueError: no such port
        raise SparkUnavailable(f"Spark at {address.geturl()} cannot be reached: {error}") from error


def _errors() -> tuple[type[Exception], ...]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return (PySparkException, Py4JError, OSError)  # OSError: Spark's process has ended


def _cause(message: str) -> str:
    """The innermost cause of a Java error, or else its first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")]
    return ([*causes[-1:], *lines, "no reason given"])[0][:500]


def _for_spark(
    connection: duckdb.DuckDBPyConnection, folder: Folder, usage_day: date, day: DayReadings
) -> list[ParquetFiles]:
    """The files that Spark reads."""
    readable = [
        files
        for files in day.parquet
        if all(kind in _BY_COLUMN[column] for column, kind in files.types.items())
        and not any(name.startswith("_") or ":" in name for name in files.names)
        and not _fixed_length(connection, folder, usage_day, files)
    ]
    # DuckDB compares a FLOAT by its text, so that 21.1 equals the DOUBLE 21.1. Spark writes other
    # texts, so it reads FLOATs only if all values are FLOATs: those are equal if their texts are.
    kinds = {files.types["value"] for files in day.parquet if "value" in files.types}
    if kinds == {"FLOAT"} and sum(len(files.names) for files in readable) == len(day.rows):
        return readable
    return [files for files in readable if files.types.get("value") != "FLOAT"]


def _fixed_length(
    connection: duckdb.DuckDBPyConnection, folder: Folder, usage_day: date, files: ParquetFiles
) -> bool:
    """Whether values have a type that DuckDB reads as FLOAT or DOUBLE, and Spark does not read.

    These are half floats and decimals of more than 38 digits.
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


def _path(folder: Folder, *below: str) -> str:
    """The path as a pattern that matches only itself: Spark, too, reads paths as patterns."""
    path = re.sub(r"[\\*?\[\]{}]", lambda magic: rf"\{magic.group()}", folder.path(*below))
    if folder.is_local:
        return f"file:{path}"
    scheme, rest = path.split("://", 1)
    return f"{_SCHEMES.get(scheme, scheme)}://{rest}"


def _columns(usage_day: date, files: ParquetFiles) -> Sequence[str]:
    """The columns of the contract, as `readings` has them for DuckDB."""
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
