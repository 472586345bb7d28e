"""The kernel: counts the plain rows of a day without SQL, and leaves the others to SQL.

A row is plain if its ids and its time are certainly valid, and if it is either the only row of its
organization, sensor and instant, or equal to all others of that reading in its value too. All rows
of one reading are counted here, or all are left to SQL, so that both counts add up, and only SQL
decides what a defect or a conflict is.

    shares of row groups -> ids to codes -> keys (code, instant) -> buckets -> repeated keys
                         -> odd rows                                        -> unlike values
                              |                                                 |
                              +-------------- left to count.sql ----------------+

Threads work on shares and buckets. What does not fit in memory goes to a spill folder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from billing_pipeline.usage.kernel.grouping import (
    Bools,
    CodeTable,
    Hash,
    Ints,
    TooManyCodes,
    TooManyCollisions,
    Words,
    mixed,
    representatives,
)
from billing_pipeline.usage.kernel.identity import Identities, as_text, identities, is_odd
from billing_pipeline.usage.kernel.limits import Limits
from billing_pipeline.usage.kernel.runs import Runs
from billing_pipeline.usage.kernel.shares import (
    COLUMNS,
    KEY_COLUMNS,
    CannotCount,
    Share,
    Source,
    shares_of,
    sources_of,
)
from billing_pipeline.usage.readings import day_start_ns
from billing_pipeline.usage.sources.day_files import DayFiles
from billing_pipeline.usage.sources.folders import Folder

DAY_NS = 86_400 * 10**9

_SCATTER = 0xD1342543DE82EF95
"""Odd, so that multiplying by it modulo 2**64 loses nothing: equal keys stay equal, different keys
stay different, and neighbouring keys go to different buckets."""
_GATHER = pow(_SCATTER, -1, 2**64)
"""Its inverse."""

_T = TypeVar("_T")


class _NeedsNanoseconds(Exception):
    """An instant is not a whole number of microseconds."""


@dataclass(frozen=True)
class KernelCounts:
    """The kernel's counts of a day, and the rows left to SQL.

    `activity` has one row per organization and sensor with the counts of the plain rows. `odd` and
    `unlike` are Parquet files of the rows left to SQL: `odd` have the columns of the readings' own
    files, `unlike` have `instant` (nanoseconds since the day began) in place of `recorded_at`.
    """

    activity: Any
    odd: tuple[Path, ...]
    unlike: tuple[Path, ...]


def count_plain(
    readings: Folder, listing: DayFiles, spill: Path, limits: Limits, hashed: Hash = mixed
) -> KernelCounts:
    """Count the plain rows of a day. Files go to the folder `spill`, which must be empty.

    Raises CannotCount with the reason; then SQL must count the whole day.
    """
    try:
        sources = sources_of(readings, listing)
        for ns_per_tick in (1000, 1):
            try:
                return _Kernel(listing, sources, spill, limits, hashed, ns_per_tick).run()
            except _NeedsNanoseconds:
                for file in spill.iterdir():
                    file.unlink()
        raise AssertionError("every instant is a whole number of nanoseconds")
    except TooManyCodes:
        raise CannotCount("more sensors than keys have room for") from None
    except TooManyCollisions:
        raise CannotCount("too many ids or times share their hashes") from None
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CannotCount(f"pyarrow cannot read it: {reason}") from error


class _Activity:
    """By sensor code: readings, exact duplicates, first and last instant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._size = 0
        self.readings = np.zeros(0, np.int64)
        self.exact = np.zeros(0, np.int64)
        self.first = np.zeros(0, np.int64)
        self.last = np.zeros(0, np.int64)

    def saw(self, codes: Ints, instants: npt.NDArray[np.int64]) -> None:
        """Count rows, each as a reading of its own."""
        with self._lock:
            self._grow(int(codes.max(initial=0)) + 1)
            np.add.at(self.readings, codes, 1)
            np.minimum.at(self.first, codes, instants)
            np.maximum.at(self.last, codes, instants)

    def uncount(self, codes: Ints) -> None:
        """Take rows out of the count: they are repeated, so they are counted later or by SQL."""
        with self._lock:
            np.subtract.at(self.readings, codes, 1)

    def count(self, readings: Ints, duplicates: Ints) -> None:
        """Count repeated rows by their codes: one for each reading, and exact duplicates."""
        with self._lock:
            np.add.at(self.readings, readings, 1)
            np.add.at(self.exact, duplicates, 1)

    def _grow(self, size: int) -> None:
        if size <= self._size:
            return
        more = max(size, 2 * self._size) - self._size
        for name, start in (("readings", 0), ("exact", 0), ("first", 2**62), ("last", -1)):
            grown = np.concatenate([getattr(self, name), np.full(more, start, np.int64)])
            setattr(self, name, grown)
        self._size += more


class _Kernel:
    """The count of one day. Methods on a share or a bucket may run in any thread."""

    def __init__(
        self,
        listing: DayFiles,
        sources: Sequence[Source],
        spill: Path,
        limits: Limits,
        hashed: Hash,
        ns_per_tick: int,
    ) -> None:
        self._sources = sources
        self._spill = spill
        self._limits = limits
        self._ns_per_tick = ns_per_tick
        self._day_start_ns = day_start_ns(listing.usage_day)
        self._time_bits = np.uint64((DAY_NS // ns_per_tick).bit_length())
        sensors = 2 ** (64 - int(self._time_bits)) - 1
        self._organizations = CodeTable(2**31, hashed)
        self._sensors = CodeTable(min(sensors, limits.most_sensors or sensors), hashed)
        self._activity = _Activity()
        self._shares = shares_of(sources, limits.chunk_rows)
        rows = sum(piece.rows for share in self._shares for piece in share)
        self._row_type = np.uint32 if rows < 2**32 else np.uint64
        self._bucket_bits = min(16, max(0, rows // limits.bucket_rows).bit_length())
        self._odd: list[Path] = []
        self._unlike: list[Path] = []

    def run(self) -> KernelCounts:
        """Count the day."""
        buckets, shares = range(1 << self._bucket_bits), range(len(self._shares))
        with self._runs("repeated", len(shares)) as repeated:
            with self._runs("packed", len(buckets)) as packed:
                self._in_threads(partial(self._pack, packed), self._shares)
                self._in_threads(partial(self._find_repeated, packed, repeated), buckets)
            if not (repeated.rows.any() and self._comparable()):
                self._in_threads(partial(self._leave_unlike, repeated), shares)
            else:
                with self._runs("unlike", len(shares)) as unlike:
                    with self._runs("valued", len(buckets), np.uint64, np.bool_) as valued:
                        self._in_threads(partial(self._add_values, repeated, valued), shares)
                        self._in_threads(partial(self._compare, valued, unlike), buckets)
                    self._in_threads(partial(self._leave_unlike, unlike), shares)
        return KernelCounts(self._table(), tuple(self._odd), tuple(self._unlike))

    # From rows to packed keys ------------------------------------------------------------------

    def _pack(self, packed: Runs, share: Share) -> None:
        """Deal the keys and numbers of a share's rows into buckets; leave its odd rows to SQL."""
        keys: list[Words] = []
        rows: list[Any] = []
        waiting = 0
        odd: list[Ints] = []
        for piece in share:
            first = piece.first
            for batch in piece.batches(KEY_COLUMNS, self._limits.batch_rows):
                plain, key = self._keys(batch, piece.source.ns_per_tick)
                numbers = np.arange(first, first + batch.num_rows, dtype=self._row_type)
                if plain is not None:
                    odd.append(numbers[~plain])
                    numbers = numbers[plain]
                keys.append(key)
                rows.append(numbers)
                first += batch.num_rows
                waiting += len(key)
                if waiting >= self._limits.chunk_rows:
                    self._deal(packed, keys, rows)
                    waiting = 0
        self._deal(packed, keys, rows)
        if odd:
            self._leave_odd(share, np.concatenate(odd))

    def _deal(self, packed: Runs, keys: list[Words], rows: list[Any]) -> None:
        if keys:
            scattered = np.concatenate(keys)
            packed.add([scattered, np.concatenate(rows)], self._bucket(scattered))
        keys.clear()
        rows.clear()

    def _keys(self, batch: Any, ns_per_tick: int) -> tuple[Bools | None, Words]:
        """Which rows have valid ids and times (None: all), and the scattered keys of these rows."""
        instants, inside = self._instants(batch.column(2), ns_per_tick)
        present = inside
        for ids in (batch.column(0), batch.column(1)):
            if ids.null_count:
                present = present & ids.is_valid().to_numpy(zero_copy_only=False)
        plain: Bools | None = None
        if not present.all():
            plain = present
            batch = batch.filter(pa.array(present))
            instants = instants[present]
        codes = self._sensor_codes(batch.column(0), batch.column(1))
        if self._sensors.some_odd:
            good = ~self._sensors.odd[codes]
            if not good.all():
                codes, instants = codes[good], instants[good]
                if plain is None:
                    plain = good
                else:
                    plain[plain] = good
        self._activity.saw(codes, instants.view(np.int64))
        key = codes.astype(np.uint64) << self._time_bits | instants
        key *= np.uint64(_SCATTER)
        return plain, key

    def _instants(self, column: Any, ns_per_tick: int) -> tuple[Words, Bools]:
        """Ticks of the key's unit since the day began, and which of them are within the day."""
        ticks = np.frombuffer(column.buffers()[1], np.uint64)
        ticks = ticks[column.offset : column.offset + len(column)]
        # Modulo 2**64, every time outside the day is more than a day after its start, so that no
        # time overflows, however far away.
        since = ticks - np.uint64(self._day_start_ns // ns_per_tick % 2**64)
        inside = since < np.uint64(DAY_NS // ns_per_tick)
        if column.null_count:
            inside &= column.is_valid().to_numpy(zero_copy_only=False)
        if ns_per_tick >= self._ns_per_tick:
            since *= np.uint64(ns_per_tick // self._ns_per_tick)
            return since, inside
        factor = np.uint64(self._ns_per_tick // ns_per_tick)
        coarse = since // factor
        if (inside & (coarse * factor != since)).any():
            raise _NeedsNanoseconds
        return coarse, inside

    def _sensor_codes(self, organization_ids: Any, sensor_ids: Any) -> Ints:
        organizations = self._organization_codes(organization_ids)
        ids = _identities(sensor_ids)
        head = organizations.astype(np.uint64) << np.uint64(32) | ids.lengths

        def describe(rows: Ints) -> tuple[Any, Bools]:
            texts = _texts(sensor_ids, rows)
            odd = is_odd(texts) | self._organizations.odd[organizations[rows]]
            return texts, odd

        return self._sensors.codes([head, *ids.words], describe)

    def _organization_codes(self, column: Any) -> Ints:
        values, indices = _as_dictionary(column)
        ids = identities(as_text(values))

        def describe(rows: Ints) -> tuple[Any, Bools]:
            texts = _texts(values, rows)
            return texts, is_odd(texts)

        codes = self._organizations.codes([ids.lengths, *ids.words], describe)
        return codes if indices is None else codes.take(indices, mode="clip")

    def _leave_odd(self, share: Share, rows: Ints) -> None:
        writers: dict[Any, tuple[Path, Any]] = {}
        with ExitStack() as stack:
            for piece in share:
                columns = COLUMNS if piece.source.value is not None else KEY_COLUMNS
                for batch in piece.chosen(columns, self._limits.batch_rows, rows):
                    table = pa.Table.from_batches([batch])
                    self._write(stack, writers, f"odd-{share[0].first}", table)
        self._odd.extend(path for path, _ in writers.values())

    # Rows that share their key -----------------------------------------------------------------

    def _find_repeated(self, packed: Runs, repeated: Runs, bucket: int) -> None:
        """Deal the rows that share their key with another row into `repeated`, by share."""
        if packed.rows[bucket] > self._limits.most_bucket_rows:
            raise CannotCount("a single reading has too many rows")
        keys, rows = packed.bucket(bucket)
        chosen = self._representatives(keys)
        others = np.flatnonzero(chosen != np.arange(len(keys)))
        if not others.size:
            return
        shared = np.zeros(len(keys), np.bool_)
        shared[others] = True
        shared[chosen[others]] = True
        keys, rows = keys[shared], rows[shared]
        self._activity.uncount(self._unpacked(keys)[0])
        repeated.add([keys, rows], self._share(rows))

    def _representatives(self, keys: Words) -> Ints:
        # All keys of a bucket begin with the same bits, so others must choose the slot.
        hashes = keys ^ keys >> np.uint64(32)
        hashes *= np.uint64(_SCATTER)
        return representatives(hashes, partial(_equal, keys))

    def _comparable(self) -> bool:
        """Whether equal bits are equal values: all files have one type of number, or no values."""
        kinds = {source.value for source in self._sources}
        return len(kinds) == 1 and all(
            kind is None or pa.types.is_integer(kind) or pa.types.is_floating(kind)
            for kind in kinds
        )

    def _add_values(self, repeated: Runs, valued: Runs, share: int) -> None:
        """Read the values of a share's repeated rows, and deal them into buckets again."""
        keys, rows = repeated.bucket(share)
        if not len(rows):
            return
        order = np.argsort(rows)
        keys, rows = keys[order], rows[order]
        bits = np.zeros(len(rows), np.uint64)
        nulls = np.zeros(len(rows), np.bool_)
        at = 0
        for _, values in self._values(share, rows):
            here = slice(at, at := at + len(values))
            bits[here] = _bits(values)
            nulls[here] = values.is_null().to_numpy(zero_copy_only=False)
        bits[nulls] = 0
        valued.add([keys, rows, bits, nulls], self._bucket(keys))

    def _compare(self, valued: Runs, unlike: Runs, bucket: int) -> None:
        """Count the readings whose rows are all equal; deal the rows of the others by share."""
        keys, rows, bits, nulls = valued.bucket(bucket)
        if not len(keys):
            return
        chosen = self._representatives(keys)
        differs = (bits != bits[chosen]) | (nulls != nulls[chosen])
        conflict = np.zeros(len(keys), np.bool_)
        conflict[chosen[differs]] = True
        rest = conflict[chosen]
        own = chosen == np.arange(len(keys))
        codes, _ = self._unpacked(keys)
        self._activity.count(codes[own & ~rest], codes[~own & ~rest])
        unlike.add([keys[rest], rows[rest]], self._share(rows[rest]))

    def _leave_unlike(self, unlike: Runs, share: int) -> None:
        """Write the rows of a share whose values SQL must compare."""
        keys, rows = unlike.bucket(share)
        if not len(rows):
            return
        order = np.argsort(rows)
        keys, rows = keys[order], rows[order]
        writers: dict[Any, tuple[Path, Any]] = {}
        at = 0
        with ExitStack() as stack:
            for source, values in self._values(share, rows):
                codes, instants = self._unpacked(keys[at : at + len(values)])
                at += len(values)
                organizations, sensors = self._ids(codes)
                columns = {
                    "organization_id": organizations,
                    "sensor_id": sensors,
                    "instant": pa.array(instants.view(np.int64) * self._ns_per_tick),
                }
                if source.value is not None:
                    columns["value"] = values
                self._write(stack, writers, f"unlike-{share}", pa.table(columns))
        self._unlike.extend(path for path, _ in writers.values())

    def _values(self, share: int, rows: Ints) -> Iterator[tuple[Source, Any]]:
        """The values of some rows of a share, by ascending numbers. Files without values: nulls."""
        for piece in self._shares[share]:
            wanted = rows[
                np.searchsorted(rows, piece.first) : np.searchsorted(rows, piece.first + piece.rows)
            ]
            if piece.source.value is None:
                yield piece.source, pa.nulls(len(wanted), pa.int64())
                continue
            for batch in piece.chosen(["value"], self._limits.batch_rows, wanted):
                yield piece.source, batch.column(0)

    # Helpers -----------------------------------------------------------------------------------

    def _runs(self, name: str, buckets: int, *more: npt.DTypeLike) -> Runs:
        """Runs of keys, row numbers and `more` in the spill folder."""
        types = (np.uint64, self._row_type, *more)
        return Runs(self._spill / name, types, buckets, self._limits.kept_bytes)

    def _bucket(self, keys: Words) -> Ints:
        if not self._bucket_bits:
            return np.zeros(len(keys), np.intp)
        return (keys >> np.uint64(64 - self._bucket_bits)).view(np.intp)

    def _share(self, rows: Any) -> Ints:
        firsts = np.array([share[0].first for share in self._shares])
        shares: Ints = np.searchsorted(firsts, rows, "right") - 1
        return shares

    def _unpacked(self, keys: Words) -> tuple[Ints, Words]:
        """The sensor codes and instants of keys."""
        unscattered = keys * np.uint64(_GATHER)
        codes = (unscattered >> self._time_bits).view(np.intp)
        return codes, unscattered & np.uint64(2 ** int(self._time_bits) - 1)

    def _ids(self, codes: Ints) -> tuple[Any, Any]:
        """The ids of organizations and sensors, by sensor code."""
        organizations = (self._sensors.first_words[codes - 1] >> np.uint64(32)).view(np.intp)
        return (
            _column(self._organizations.texts).take(pa.array(organizations - 1)),
            _column(self._sensors.texts).take(pa.array(codes - 1)),
        )

    def _table(self) -> Any:
        """The counts by sensor, in the columns of `counted`."""
        size = self._sensors.size + 1
        readings = self._activity.readings[:size]
        codes = np.flatnonzero(readings)
        organizations, sensors = self._ids(codes)
        exact = self._activity.exact[codes]
        return pa.table(
            {
                "organization_id": organizations,
                "sensor_id": sensors,
                "readings": readings[codes],
                "exact_duplicates": exact,
                "first_at": self._activity.first[codes] * self._ns_per_tick,
                "last_at": self._activity.last[codes] * self._ns_per_tick,
            }
        )

    def _write(
        self, stack: ExitStack, writers: dict[Any, tuple[Path, Any]], name: str, table: Any
    ) -> None:
        """Append rows to the file of their schema: one file for each schema."""
        if table.schema not in writers:
            path = self._spill / f"{name}-{len(writers)}.parquet"
            writer = pq.ParquetWriter(path, table.schema, compression="lz4")
            writers[table.schema] = path, stack.enter_context(writer)
        writers[table.schema][1].write_table(table)

    def _in_threads(self, work: Callable[[_T], None], items: Sequence[_T]) -> None:
        """Do some work on each item. The first failure stops the rest and is raised."""
        pool = ThreadPoolExecutor(self._limits.threads)
        try:
            for _ in pool.map(work, items):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _equal(keys: Words, left: Ints, right: Ints) -> Bools:
    equal: Bools = keys.take(left, mode="clip") == keys.take(right, mode="clip")
    return equal


def _as_dictionary(column: Any) -> tuple[Any, Ints | None]:
    """The distinct values, and the index of each row's value; None: each row has its own."""
    if not pa.types.is_dictionary(column.type):
        return column, None
    if len(column.dictionary) > len(column) or column.dictionary.null_count:
        return column.dictionary_decode(), None
    return column.dictionary, column.indices.to_numpy().astype(np.intp)


def _identities(column: Any) -> Identities:
    values, indices = _as_dictionary(column)
    ids = identities(as_text(values))
    return ids if indices is None else ids.take(indices)


def _texts(column: Any, rows: Ints) -> Any:
    return pc.cast(as_text(column.take(pa.array(rows))), pa.string())


def _column(texts: list[Any]) -> Any:
    return pa.chunked_array(texts, pa.string())


def _bits(values: Any) -> Words:
    """The bits of numbers."""
    raw = np.frombuffer(values.buffers()[1], f"<u{values.type.bit_width // 8}")
    return raw[values.offset : values.offset + len(values)].astype(np.uint64)
