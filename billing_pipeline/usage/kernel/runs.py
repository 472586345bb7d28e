"""Rows dealt into parts: added in runs, read back part by part, in memory as far as it reaches."""

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
    """Some rows in the order of their parts: part n is [bounds[n], bounds[n + 1])."""

    bounds: npt.NDArray[np.int64]
    kept: tuple[Column, ...] | None
    """The columns, None when they lie in the file."""
    places: tuple[int, ...]
    """Where each column begins in the file, in bytes."""


class Runs:
    """Rows of some columns, dealt into `parts` parts. Threads may add and read at once.

    Up to `kept_bytes` stay in memory; what is more goes to a file, which is made when needed.
    Within a part, rows of one run keep their order.
    """

    def __init__(
        self, path: Path, types: Sequence[npt.DTypeLike], parts: int, kept_bytes: int
    ) -> None:
        self._path = path
        self._types = [np.dtype(kind) for kind in types]
        self._parts = parts
        self._room = kept_bytes
        self._lock = threading.Lock()
        self._runs: list[_Run] = []
        self._descriptor: int | None = None
        self._end = 0
        self.rows = np.zeros(parts, np.int64)
        """By part."""

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

    def add(self, columns: Sequence[Column], part: npt.NDArray[Any]) -> None:
        """Add rows; `part` tells the part of each."""
        if not len(part):
            return
        small = np.uint8 if self._parts <= 2**8 else np.uint16 if self._parts <= 2**16 else np.int64
        order = np.argsort(part.astype(small, copy=False), kind="stable")  # radix up to 16 bits
        sizes = np.bincount(part, minlength=self._parts)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        dealt = tuple(
            column.astype(kind, copy=False).take(order, mode="clip")
            for column, kind in zip(columns, self._types, strict=True)
        )
        keep, places = self._reserve([column.nbytes for column in dealt])
        if not keep:
            for column, place in zip(dealt, places, strict=True):
                self._write(column, place)
        with self._lock:
            self._runs.append(_Run(bounds, dealt if keep else None, places))
            self.rows += sizes

    def part(self, number: int) -> list[Column]:
        """The columns of a part."""
        columns = [np.empty(self.rows[number], kind) for kind in self._types]
        at = 0
        for run in self._runs:
            begin, end = int(run.bounds[number]), int(run.bounds[number + 1])
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
        """Whether columns of these bytes stay in memory, or else their places in the file."""
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
