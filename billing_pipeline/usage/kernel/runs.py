"""Rows dealt into buckets: added in runs, read back by bucket, on disk beyond a limit."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class _Run:
    """Some rows in the order of their buckets: bucket n is [offsets[n], offsets[n + 1])."""

    offsets: npt.NDArray[np.int64]
    kept: tuple[Column, ...] | None
    """The columns; None if they are in the file."""
    places: tuple[int, ...]
    """The byte at which each column begins in the file."""


class Runs:
    """Rows of some columns, dealt into buckets. Threads may add and read at once.

    Up to `kept_bytes` stay in memory; further rows go to a file, which is created when needed.
    Within a bucket, rows of one run keep their order.
    """

    def __init__(
        self, path: Path, types: Sequence[npt.DTypeLike], buckets: int, kept_bytes: int
    ) -> None:
        self._path = path
        self._types = [np.dtype(kind) for kind in types]
        self._buckets = buckets
        self._room = kept_bytes
        self._lock = threading.Lock()
        self._runs: list[_Run] = []
        self._descriptor: int | None = None
        self._end = 0
        self.rows = np.zeros(buckets, np.int64)
        """By bucket."""

    def __enter__(self) -> Runs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runs.clear()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._path.unlink()

    def add(self, columns: Sequence[Column], buckets: npt.NDArray[Any]) -> None:
        """Add rows; `buckets` has the bucket of each."""
        if not len(buckets):
            return
        small = (
            np.uint8 if self._buckets <= 2**8 else np.uint16 if self._buckets <= 2**16 else np.int64
        )
        order = np.argsort(buckets.astype(small, copy=False), kind="stable")  # radix up to 16 bits
        sizes = np.bincount(buckets, minlength=self._buckets)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        dealt = tuple(
            column.astype(kind, copy=False).take(order, mode="clip")
            for column, kind in zip(columns, self._types, strict=True)
        )
        keep, places = self._reserve([column.nbytes for column in dealt])
        if not keep:
            for column, place in zip(dealt, places, strict=True):
                self._write(column, place)
        with self._lock:
            self._runs.append(_Run(offsets, dealt if keep else None, places))
            self.rows += sizes

    def bucket(self, number: int) -> list[Column]:
        """The columns of a bucket."""
        columns = [np.empty(self.rows[number], kind) for kind in self._types]
        at = 0
        for run in self._runs:
            begin, end = int(run.offsets[number]), int(run.offsets[number + 1])
            if begin == end:
                continue
            for n, column in enumerate(columns):
                target = column[at : at + end - begin]
                if run.kept is not None:
                    target[:] = run.kept[n][begin:end]
                else:
                    self._read(target, run.places[n] + begin * column.itemsize)
            at += end - begin
        return columns

    def _reserve(self, sizes: Sequence[int]) -> tuple[bool, tuple[int, ...]]:
        """Whether columns of these sizes stay in memory; if not, their places in the file."""
        with self._lock:
            if sum(sizes) <= self._room:
                self._room -= sum(sizes)
                return True, ()
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            places = tuple(self._end + sum(sizes[:n]) for n in range(len(sizes)))
            self._end += sum(sizes)
            return False, places

    def _write(self, column: Column, place: int) -> None:
        assert self._descriptor is not None
        rest = column.data.cast("B")
        while rest:
            done = os.pwrite(self._descriptor, rest, place)
            rest, place = rest[done:], place + done

    def _read(self, target: Column, place: int) -> None:
        assert self._descriptor is not None
        rest = target.data.cast("B")
        while rest:
            done = os.preadv(self._descriptor, [rest], place)
            if not done:
                raise OSError(f"{self._path} is shorter than what was written to it")
            rest, place = rest[done:], place + done
