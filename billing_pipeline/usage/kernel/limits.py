"""How much the kernel has in memory at a time, from the memory limit that DuckDB also has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_UNITS = {
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip

_CHUNK_BYTES = 160
"""About the memory per row while a chunk is read and packed."""
_BUCKET_BYTES = 80
"""About the memory per row of a bucket while its repeated keys are found."""
_AT_MOST = 2**20
"""More rows of a chunk are not faster."""
_BUCKET_AT_MOST = 2**18
"""With more rows, the table of keys does not fit in the cache: three times slower."""


@dataclass(frozen=True)
class Limits:
    """Sizes in the kernel. They decide memory and speed, never what is counted."""

    threads: int
    batch_rows: int
    """Rows decoded at a time."""
    chunk_rows: int
    """Rows packed before they are dealt into buckets; about the rows of one share."""
    bucket_rows: int
    """About the rows of a bucket. All rows of a bucket are in memory at a time."""
    most_bucket_rows: int
    """With more rows in a bucket SQL counts the day: one reading has that many rows."""
    kept_bytes: int
    """Bytes of packed rows kept in memory. Further rows go to disk."""
    most_sensors: int | None = None
    """None: as many as the key has room for."""

    @classmethod
    def of(cls, memory_limit: str) -> Limits:
        """The limits for a memory limit such as "4GB"."""
        memory = in_bytes(memory_limit)
        threads = _cores()
        each = memory // (4 * threads)
        chunk_rows = min(_AT_MOST, max(2**14, each // _CHUNK_BYTES))
        return cls(
            threads,
            min(2**17, chunk_rows),
            chunk_rows,
            min(_BUCKET_AT_MOST, max(2**12, each // _BUCKET_BYTES // 4)),
            max(2**14, each // _BUCKET_BYTES),
            min(memory // 8, 256 * 10**6),
        )


def in_bytes(memory_limit: str) -> int:
    """A size in bytes, as DuckDB reads it: MB is a million bytes, MiB is 2**20."""
    number, unit = re.fullmatch(r"([\d.]+)\s*(\w+)", memory_limit.strip()).groups()  # type: ignore[union-attr]
    return int(float(number) * _UNITS[unit.upper()])


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
