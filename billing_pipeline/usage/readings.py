"""The readings contract: a day's files as one relation with the columns

    organization_id, sensor_id VARCHAR, instant BIGINT, value_number DOUBLE, value_text VARCHAR

`instant` is in nanoseconds since the day began (UTC), so that equal instants are equal integers
whatever their type in the file. A negative one is a defect: -1 the time is missing, -2 it is no
time, -3 it is outside the day. Numbers and other texts have a value column each, so that 21.5 in
Parquet equals 21.50 in CSV.

Parquet is scanned in place. Files that give their times as text (CSV, JSON lines, Parquet with
strings) are read once into a table, because only the rows show whether a column has the right type.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from billing_pipeline.errors import UnusableInput
from billing_pipeline.usage.engine import sql
from billing_pipeline.usage.sources.day_files import DayFiles, folder_name, format_of
from billing_pipeline.usage.sources.folders import Folder

NEEDED = ("organization_id", "sensor_id", "recorded_at")

_INTEGERS = {
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT",
    "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
}  # fmt: skip
_ID_TYPES = _INTEGERS | {"VARCHAR", "UUID", '"NULL"'}  # the last: a column of nulls only

# `instant` by the type of a Parquet timestamp.
_IN_DAY = {
    '"NULL"': "-1",
    "TIMESTAMP": "in_day(epoch_us(recorded_at), 1000)",
    "TIMESTAMP WITH TIME ZONE": "in_day(epoch_us(recorded_at), 1000)",
    "TIMESTAMP_NS": "in_day(epoch_ns(recorded_at), 1)",
    "TIMESTAMPTZ_NS": "in_day(epoch_ns(recorded_at), 1)",
}

# A text is an instant only if it has a time of day: with bare dates all readings of a sensor would
# be one. A time outside the years of a nanosecond clock is outside the day, not invalid.
_TEXT_AT = """CASE
    WHEN recorded_at IS NULL OR trim(recorded_at) = '' THEN -1
    WHEN NOT contains(recorded_at, ':') OR try_cast(recorded_at AS TIMESTAMPTZ) IS NULL THEN -2
    ELSE in_day(epoch_ns(try_cast(recorded_at AS TIMESTAMPTZ_NS)), 1)
END"""


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files that are scanned together.

    `types` are the types of the columns that matter, as DuckDB names them. `select` reads their
    rows in the columns of the contract.
    """

    types: Mapping[str, str]
    names: tuple[str, ...]
    select: str


@dataclass(frozen=True)
class DayReadings:
    """The sources of the view `readings`: `rows` by file, and the Parquet scanned in place.

    The view `text_readings` has the rows of all other files.
    """

    rows: Mapping[str, int]
    parquet: Sequence[ParquetFiles]


TEXT_READINGS = "SELECT * EXCLUDE (file) FROM text_readings"


def create_readings(
    connection: duckdb.DuckDBPyConnection, folder: Folder, listing: DayFiles
) -> DayReadings:
    """Create the view `readings` of a day's files.

    Raises UnusableInput with the file's name, and the column's if a column is unusable.
    """
    connection.execute(sql("in_day").replace("$day_start_ns", str(day_start_ns(listing.usage_day))))
    connection.execute(sql("text_readings"))
    rows: dict[str, int] = {}
    by_format = defaultdict(list)
    for file in listing.files:
        by_format[format_of(file.name)].append(file.name)
    day = folder_name(listing.usage_day)
    scanned = _parquet(connection, folder, day, by_format["parquet"], rows)
    for name in by_format["csv"]:
        _read_text(connection, day, name, _csv_rows(folder, day, name))
    for name in by_format["jsonl"]:
        _read_text(connection, day, name, _json_rows(folder.pattern(day, name)))
    rows |= _checked_text(connection, day, [f.name for f in listing.files if f.name not in rows])
    connection.execute(f"CREATE VIEW readings AS {union(scanned)}")
    return DayReadings(rows, scanned)


def union(scanned: Iterable[ParquetFiles]) -> str:
    """A SELECT of the rows of these files and of the files read as text."""
    return "\nUNION ALL ".join([TEXT_READINGS, *(files.select for files in scanned)])


def keep_rest(
    connection: duckdb.DuckDBPyConnection, odd: Sequence[Path], unlike: Sequence[Path]
) -> None:
    """Reduce `readings` to the rows that the kernel left to SQL.

    `odd` files have the columns of the day's own files; `unlike` files have `instant` already.
    """
    selects = [TEXT_READINGS]  # it is empty here, and gives the types
    by_folder = defaultdict(list)
    for path in odd:
        by_folder[path.parent].append(path.name)
    for folder, names in by_folder.items():
        scanned = _parquet(connection, Folder(str(folder)), "", names, {})
        selects += [files.select for files in scanned]
    by_kind = defaultdict(list)
    for path in unlike:
        scan = _parquet_scan([str(path)])
        types = {
            column: kind
            for column, kind, *_ in connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()
        }
        by_kind[types.get("value")].append(str(path))
    for kind, paths in by_kind.items():
        number, text = _value_columns(kind)
        selects.append(
            f"SELECT organization_id, sensor_id, instant, {number}, {text} "
            f"FROM {_parquet_scan(paths)}"
        )
    connection.execute("CREATE OR REPLACE VIEW readings AS " + "\nUNION ALL ".join(selects))


def name_the_broken(
    connection: duckdb.DuckDBPyConnection, folder: Folder, listing: DayFiles, error: Exception
) -> UnusableInput:
    """The error of a failed scan, with the Parquet file that caused it: each is scanned alone."""
    day = folder_name(listing.usage_day)
    for file in listing.files:
        if format_of(file.name) == "parquet":
            try:
                scan = _parquet_scan([folder.pattern(day, file.name)])
                connection.execute(f"SELECT bit_xor(hash(COLUMNS(*))) FROM {scan}").fetchall()
            except duckdb.Error as broken:
                return UnusableInput(f"{day}/{file.name} cannot be read: {_reason(broken)}")
    return UnusableInput(f"{day} cannot be counted: {_reason(error)}")


def _parquet(
    connection: duckdb.DuckDBPyConnection,
    folder: Folder,
    day: str,
    names: Iterable[str],
    rows: dict[str, int],
) -> list[ParquetFiles]:
    """The files, grouped by the types of their columns; those with times as text are read now."""
    # Only files of equal types are scanned together: DuckDB would cast the others to the types of
    # the first, and "007" would become 7.
    by_schema: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for name in names:
        path = folder.pattern(day, name)
        try:
            described = connection.execute(
                f"DESCRIBE SELECT * FROM {_parquet_scan([path])}"
            ).fetchall()
            counted = connection.execute(
                f"SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata([{_quoted(path)}])"
            ).fetchone()
        except duckdb.Error as error:
            raise UnusableInput(f"{day}/{name} cannot be read: {_reason(error)}") from None
        types = {column: kind for column, kind, *_ in described}
        _check_types(f"{day}/{name}", types)
        if types["recorded_at"] == "VARCHAR":
            value = "value::VARCHAR" if "value" in types else "NULL"
            _read_text(
                connection,
                day,
                name,
                "SELECT organization_id::VARCHAR AS organization_id, "
                f"sensor_id::VARCHAR AS sensor_id, recorded_at, {value} AS value "
                f"FROM {_parquet_scan([path])}",
            )
        else:
            schema = tuple((c, types[c]) for c in (*NEEDED, "value") if c in types)
            by_schema[schema].append(name)
            rows[name] = counted[0] if counted else 0
    return [
        ParquetFiles(
            dict(schema),
            tuple(names),
            f"SELECT {_columns(dict(schema))} "
            f"FROM {_parquet_scan(folder.pattern(day, name) for name in names)}",
        )
        for schema, names in by_schema.items()
    ]


def _check_types(file: str, types: Mapping[str, str]) -> None:
    for column in NEEDED:
        if column not in types:
            raise UnusableInput(f"{file} has no column {column}")
    for column in ("organization_id", "sensor_id"):
        kind = "VARCHAR" if types[column].startswith("ENUM") else types[column]
        if kind not in _ID_TYPES:
            raise UnusableInput(
                f"{file}: the column {column} is {types[column]}; "
                "it must be a string, an integer or a UUID"
            )
    kind = types["recorded_at"]
    if kind not in _IN_DAY and kind != "VARCHAR":
        raise UnusableInput(f"{file}: the column recorded_at is {kind}; it must be a timestamp")


def _columns(types: Mapping[str, str]) -> str:
    in_day = _IN_DAY[types["recorded_at"]]
    number, text = _value_columns(types.get("value"))
    return (
        "organization_id::VARCHAR AS organization_id, sensor_id::VARCHAR AS sensor_id, "
        f"(CASE WHEN recorded_at IS NULL THEN -1 ELSE {in_day} END)::BIGINT AS instant, "
        f"{number} AS value_number, {text} AS value_text"
    )


def _value_columns(kind: str | None) -> tuple[str, str]:
    if kind is None:
        return "NULL::DOUBLE", "NULL::VARCHAR"
    if kind == "FLOAT":  # by its shortest text, so that 21.1 equals the DOUBLE 21.1
        return "value::VARCHAR::DOUBLE", "NULL::VARCHAR"
    if kind == "DOUBLE" or kind in _INTEGERS or kind.startswith("DECIMAL"):
        return "value::DOUBLE", "NULL::VARCHAR"
    return (
        "try_cast(value::VARCHAR AS DOUBLE)",
        "CASE WHEN try_cast(value::VARCHAR AS DOUBLE) IS NULL THEN value::VARCHAR END",
    )


def _csv_rows(folder: Folder, day: str, name: str) -> str:
    """A CSV file as rows of text. The dialect is fixed: a detected one can lose rows."""
    with folder.open(day, name) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        try:
            header = next(csv.reader(text))
        except UnicodeDecodeError:
            raise UnusableInput(f"{day}/{name} is not UTF-8") from None
        except (StopIteration, csv.Error) as error:
            raise UnusableInput(f"{day}/{name} has no readable header line: {error}") from None
    for column in NEEDED:
        if column not in header:
            raise UnusableInput(f"{day}/{name} has no column {column}")
    if len(set(header)) != len(header):
        raise UnusableInput(f"{day}/{name} has a column twice: {', '.join(header)}")
    columns = ", ".join(f"{_quoted(column)}: 'VARCHAR'" for column in header)
    value = "value" if "value" in header else "NULL"
    return f"""
        SELECT organization_id, sensor_id, recorded_at, {value} AS value
        FROM read_csv([{_quoted(folder.pattern(day, name))}], auto_detect = false, header = true,
            delim = ',', quote = '"', escape = '"', comment = '', hive_partitioning = false,
            columns = {{{columns}}})"""


def _json_rows(path: str) -> str:
    """A JSON lines file as rows of text. Ids are strings or integers, times are strings.

    A missing key is NULL. A value of another type becomes a text that is never valid: its row is
    quarantined, and a file with only such values is refused.
    """

    def text(column: str, types: str) -> str:
        kind = f"json_type(json, '$.{column}')"
        return f"""CASE WHEN {kind} IN ({types}) THEN json ->> '{column}'
            WHEN {kind} = 'NULL' THEN '' WHEN {kind} IS NOT NULL THEN chr(0) END AS {column}"""

    ids = "'VARCHAR', 'BIGINT', 'UBIGINT'"
    return f"""
        SELECT {text("organization_id", ids)}, {text("sensor_id", ids)},
            {text("recorded_at", "'VARCHAR'")}, json ->> 'value' AS value
        FROM read_ndjson_objects([{_quoted(path)}], hive_partitioning = false,
            maximum_object_size = 1048576)"""


def _read_text(connection: duckdb.DuckDBPyConnection, day: str, name: str, rows: str) -> None:
    try:
        connection.execute(
            f"""INSERT INTO text_rows
            SELECT ? AS file, organization_id, sensor_id, recorded_at, ({_TEXT_AT})::BIGINT,
                try_cast(value AS DOUBLE),
                CASE WHEN try_cast(value AS DOUBLE) IS NULL THEN value END
            FROM ({rows})""",
            [name],
        )
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise UnusableInput(f"{day}/{name} cannot be read: {_reason(error)}") from None


def _checked_text(
    connection: duckdb.DuckDBPyConnection, day: str, names: Iterable[str]
) -> dict[str, int]:
    """The number of rows of each text file. Raises UnusableInput for a missing or wrong column."""
    rows = dict.fromkeys(names, 0)
    for name, count, *columns in connection.execute(sql("text_files")).fetchall():
        rows[name] = count
        for column, present, given, valid in zip(
            NEEDED, columns[0::3], columns[1::3], columns[2::3], strict=True
        ):
            if not present and name.endswith(".jsonl"):
                raise UnusableInput(f"{day}/{name} has no column {column} in any line")
            # One bad value is one bad row. Several values, none of them good, are a wrong column.
            if given > 1 and not valid:
                wanted = "a timestamp" if column == "recorded_at" else "a string or an integer"
                raise UnusableInput(
                    f"{day}/{name}: the column {column} has the wrong type: "
                    f"none of its {given} values is {wanted}"
                )
    return rows


def _parquet_scan(paths: Iterable[str]) -> str:
    listed = ", ".join(_quoted(path) for path in paths)
    return f"read_parquet([{listed}], hive_partitioning = false)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _reason(error: Exception) -> str:
    """DuckDB's reason in one line, without its advice on options that users cannot set."""
    message = (
        str(error).split("Possible fixes")[0].split("Possible Solution")[0].split("\n\nLINE")[0]
    )
    return "; ".join(line.strip() for line in message.splitlines() if line.strip())[:500]


def day_start_ns(day: date) -> int:
    """The start of a UTC day in nanoseconds since 1970."""
    return (day - date(1970, 1, 1)).days * 86_400 * 10**9
