"""Ids as machine words: Arrow columns of text, integers or UUIDs to arrays of 64 bits per row.

An id is the text that SQL makes of it, so that 7 and "7" are one id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from billing_pipeline.usage.kernel.grouping import Bools, Ints, Words
from billing_pipeline.usage.validity import BLANKS, LONGEST_ID

LONGEST = LONGEST_ID
"""Bytes of the longest id that is counted here: it is valid, as it has no more characters."""

_WORD = 8
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), "<u2")


@dataclass(frozen=True)
class Identities:
    """The ids of a column's rows: `words` of 8 bytes each, padded with zeros, and their lengths.

    Lengths in bytes belong to the identity: "a" is not "a\\0".
    """

    words: tuple[Words, ...]
    lengths: Words

    def take(self, rows: Ints) -> Identities:
        """The ids of some rows."""
        return Identities(
            tuple(word.take(rows, mode="clip") for word in self.words),
            self.lengths.take(rows, mode="clip"),
        )


def as_text(column: Any) -> Any:
    """An id column of any usable type as Arrow strings, with its nulls."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type == pa.uuid():
        return _uuid_text(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column
    return pc.cast(column, pa.string())


def is_odd(texts: Any) -> Bools:
    """Which ids may be invalid, so that SQL must judge them: blank, long, or with a NUL.

    Raises ArrowInvalid if one is not UTF-8.
    """
    texts.validate(full=True)
    blank = pc.equal(pc.utf8_trim(texts, characters=BLANKS), "")
    long = pc.greater(pc.binary_length(texts), LONGEST)
    nul = pc.match_substring(texts, "\0")
    odd: Bools = pc.or_(pc.or_(blank, long), nul).to_numpy(zero_copy_only=False)
    return odd


def identities(texts: Any) -> Identities:
    """The ids of a string array without nulls."""
    size = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, size)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(ends)
    longest = int(lengths.max(initial=0))
    bytes_ = np.frombuffer(data, np.uint8) if data is not None and longest else _NO_BYTES
    if longest >= _WORD and longest == lengths.min():
        words = _words_of_equal_length(bytes_, int(ends[0]), len(texts), longest)
    else:
        words = _words(bytes_, ends[:-1], lengths, longest)
    return Identities(tuple(words), lengths.astype(np.uint64))


_NO_BYTES = np.zeros(0, np.uint8)


def _words_of_equal_length(
    data: np.ndarray[Any, Any], start: int, rows: int, length: int
) -> list[Words]:
    words = []
    for begin in range(0, min(length, LONGEST), _WORD):
        # The last word is read from the last 8 bytes, never beyond the buffer's end.
        at = min(begin, length - _WORD)
        view = np.ndarray((rows,), "<u8", data, start + at, (length,))
        words.append(view >> np.uint64(8 * (begin - at)))
    return words


def _words(data: np.ndarray[Any, Any], starts: Any, lengths: Any, longest: int) -> list[Words]:
    if not longest:
        return []
    starts = starts.astype(np.int64)
    if starts[0] < _WORD:  # so that 8 bytes lie before every end
        data = np.concatenate([np.zeros(_WORD, np.uint8), data])
        starts += _WORD
    anywhere = np.ndarray((len(data) - _WORD + 1,), "<u8", data, 0, (1,))
    words = []
    for begin in range(0, min(longest, LONGEST), _WORD):
        word = np.zeros(len(lengths), np.uint64)
        rows = np.flatnonzero(lengths > begin)
        at = starts[rows] + begin
        missing = np.maximum(begin + _WORD - lengths[rows], 0)
        word[rows] = anywhere[at - missing] >> (8 * missing).astype(np.uint64)
        words.append(word)
    return words


def _uuid_text(column: Any) -> Any:
    """UUIDs in lower case with hyphens, as DuckDB writes them."""
    storage = column.storage
    raw = np.frombuffer(storage.buffers()[1], np.uint8)
    raw = raw[16 * storage.offset : 16 * (storage.offset + len(storage))].reshape(-1, 16)
    digits = _HEX[raw].view(np.uint8).reshape(-1, 32)
    text = np.full((len(raw), 36), ord("-"), np.uint8)
    for begin, end, to in ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24)):
        text[:, to : to + end - begin] = digits[:, begin:end]
    ends = np.arange(0, 36 * len(raw) + 1, 36, dtype=np.int64)
    texts = pa.LargeStringArray.from_buffers(len(raw), pa.py_buffer(ends), pa.py_buffer(text))
    return pc.if_else(column.is_valid(), texts, pa.scalar(None, pa.large_string()))
