"""A day's Parquet files as shares of rows: the row groups that one thread reads at a time.

This module decides which files the kernel reads; CannotCount gives the reason for any other. Rows
are numbered over the whole day, in the order of the files and of the rows in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from billing_pipeline.usage.kernel.grouping import Ints
from billing_pipeline.usage.sources.day_files import DayFiles, folder_name, format_of
from billing_pipeline.usage.sources.folders import Folder

ID_COLUMNS = ("organization_id", "sensor_id")
KEY_COLUMNS = (*ID_COLUMNS, "recorded_at")
COLUMNS = (*KEY_COLUMNS, "value")

_DICTIONARY_BYTES = 12
"""Uncompressed bytes per value up to which a column is read as a dictionary. With more, most of its
pages do not use the dictionary, and reading it as one takes four times as long."""

NS_PER_TICK = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


class CannotCount(Exception):
    """The kernel or Spark cannot count this day, so SQL does. The message is the reason."""


@dataclass(frozen=True)
class Source:
    """One file of the day, as described by its own metadata."""

    folder: Folder
    day: str
    name: str
    metadata: Any
    ns_per_tick: int
    value: Any
    """The Arrow type of its values; None if it has no values."""
    dictionaries: tuple[str, ...]
    """The columns that are read as dictionaries."""

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The file, opened by pyarrow."""
        options = {"metadata": self.metadata, "read_dictionary": self.dictionaries}
        if self.folder.is_local:
            with pq.ParquetFile(self.folder.path(self.day, self.name), **options) as file:
                yield file
        else:
            with (
                self.folder.open(self.day, self.name) as raw,
                pq.ParquetFile(raw, pre_buffer=True, **options) as file,
            ):
                yield file


@dataclass(frozen=True)
class Piece:
    """Consecutive row groups of one file. `first` is the number of the first row."""

    source: Source
    groups: tuple[int, ...]
    first: int
    rows: int

    def batches(self, columns: Sequence[str], batch_rows: int) -> Iterator[Any]:
        """The piece's rows in order, as record batches."""
        with self.source.opened() as file:
            yield from file.iter_batches(
                batch_rows, row_groups=self.groups, columns=list(columns), use_threads=False
            )

    def chosen(self, columns: Sequence[str], batch_rows: int, rows: Ints) -> Iterator[Any]:
        """Only some rows, given by ascending numbers. Row groups without any are not read."""
        begin = self.first
        for group in self.groups:
            end = begin + self.source.metadata.row_group(group).num_rows
            wanted = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, end)]
            if wanted.size:
                alone = Piece(self.source, (group,), begin, end - begin)
                at = begin
                for batch in alone.batches(columns, batch_rows):
                    here = wanted[(wanted >= at) & (wanted < at + batch.num_rows)]
                    if here.size:
                        yield batch.take(pa.array(here - at))
                    at += batch.num_rows
            begin = end


Share = tuple[Piece, ...]


def sources_of(folder: Folder, listing: DayFiles) -> list[Source]:
    """The day's files. Raises CannotCount with the name of the first of another kind."""
    for file in listing.files:
        if format_of(file.name) != "parquet":
            raise CannotCount(f"{file.name} is not Parquet")
    return [_source(folder, folder_name(listing.usage_day), file.name) for file in listing.files]


def shares_of(sources: Sequence[Source], share_rows: int) -> list[Share]:
    """The sources' rows in shares of about `share_rows` rows; no row group is in two shares."""
    shares: list[Share] = []
    share: list[Piece] = []
    first = room = 0
    for source in sources:
        groups: list[int] = []
        begin = first
        for group in range(source.metadata.num_row_groups):
            rows = source.metadata.row_group(group).num_rows
            if rows > room and (share or groups):
                if groups:
                    share.append(Piece(source, tuple(groups), begin, first - begin))
                shares.append(tuple(share))
                share, groups, begin, room = [], [], first, share_rows
            groups.append(group)
            first += rows
            room -= rows
        if groups:
            share.append(Piece(source, tuple(groups), begin, first - begin))
    return [*shares, tuple(share)] if share else shares


def _source(folder: Folder, day: str, name: str) -> Source:
    with folder.open(day, name) as raw, pq.ParquetFile(raw) as file:
        metadata, schema = file.metadata, file.schema_arrow
    folded = [column.lower() for column in schema.names]  # as SQL compares them
    for column in COLUMNS:
        if folded.count(column) > 1:
            raise CannotCount(f"{name} has the column {column} twice")
    for column in ID_COLUMNS:
        if not _is_id(schema.field(column).type):
            raise CannotCount(f"{name}: {column} is {schema.field(column).type}")
    at = schema.field("recorded_at").type
    physical = {_leaf(metadata, n).path: _leaf(metadata, n) for n in range(metadata.num_columns)}
    if not pa.types.is_timestamp(at) or not _is_timestamp(physical["recorded_at"], at):
        raise CannotCount(f"{name}: recorded_at is {at}")
    value = schema.field("value").type if "value" in schema.names else None
    if value is not None and not _is_value(value):
        raise CannotCount(f"{name}: value is {value}")
    dictionaries = tuple(c for c in ID_COLUMNS if _worth_a_dictionary(metadata, physical[c]))
    return Source(folder, day, name, metadata, NS_PER_TICK[at.unit], value, dictionaries)


@dataclass(frozen=True)
class _Leaf:
    """A column in the file's Parquet schema."""

    path: str
    number: int
    physical: str
    logical: Any


def _leaf(metadata: Any, number: int) -> _Leaf:
    column = metadata.schema.column(number)
    return _Leaf(
        column.path, number, column.physical_type, json.loads(column.logical_type.to_json())
    )


def _is_timestamp(leaf: _Leaf, at: Any) -> bool:
    """Whether pyarrow reads the same ticks that the file has."""
    units = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}
    return leaf.physical == "INT64" and units.get(leaf.logical.get("timeUnit")) == at.unit


def _is_id(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or kind == pa.uuid()
    )


def _is_value(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_float32(kind)
        or pa.types.is_float64(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal128(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )


def _worth_a_dictionary(metadata: Any, leaf: _Leaf) -> bool:
    if leaf.physical != "BYTE_ARRAY":
        return False
    columns = [
        metadata.row_group(group).column(leaf.number) for group in range(metadata.num_row_groups)
    ]
    size = sum(column.total_uncompressed_size for column in columns)
    return (
        all(column.has_dictionary_page for column in columns)
        and size <= _DICTIONARY_BYTES * metadata.num_rows
    )
