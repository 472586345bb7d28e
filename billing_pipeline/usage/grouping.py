"""Grouping by hashing: rows that are equal find each other, and identities get dense codes.

Nothing is sorted: a row is scattered to a slot of a table by its hash, and whoever is found there
is compared in full. So a hash only makes it fast, never wrong. NumPy releases the interpreter's
lock in all that is slow here; several threads may look up and add codes at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.intp]
"""Row numbers, codes or slots: what arrays are indexed with."""
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
"""64 bits of each row."""
Hash = Callable[[Sequence[Words]], Words]
"""From the words of each row to its hash; words of zeros at the end must not change it."""

ROUNDS = 64
"""A table half full needs about ten; more of them only a hash that was built to collide."""

_GOLDEN = 0x9E3779B97F4A7C15


class TooManyCollisions(Exception):
    """So many different rows share a hash that looking further would take for ever."""


class TooManyCodes(Exception):
    """There are more identities than codes for them."""


def mixed(words: Sequence[Words]) -> Words:
    """The usual hash: each word times an odd number of its own, summed, then mixed."""
    total = words[0] * np.uint64(_GOLDEN)
    for place, word in enumerate(words[1:], 1):
        total += word * np.uint64((_GOLDEN * (2 * place + 1) ^ place << 33) % 2**64 | 1)
    total ^= total >> np.uint64(32)
    total *= np.uint64(0xD6E8FEB86659FD93)
    return total


def representatives(hashes: Words, same: Callable[[Ints, Ints], Bools]) -> Ints:
    """For each row the number of one row that all rows equal to it agree upon.

    `same` compares rows with rows, by their numbers. In each round every slot of the table is
    taken by one of its rows, and by all that are equal to that one; the others go on.
    """
    rows = len(hashes)
    bits = max(1, (2 * rows - 1).bit_length())
    slots = (hashes >> np.uint64(64 - bits)).view(np.intp)
    table = np.empty(1 << bits, np.int32 if rows < 2**31 else np.int64)
    found = np.arange(rows, dtype=np.intp)
    table[slots] = found
    winners = table.take(slots, mode="clip").astype(np.intp)
    active = np.flatnonzero(winners != found)
    for _ in range(ROUNDS):
        if not active.size:
            return found
        winner = winners[active]
        settled = same(active, winner)
        found[active[settled]] = winner[settled]
        active = active[~settled]
        table[slots[active]] = active
        winners[active] = table[slots[active]]
    raise TooManyCollisions


@dataclass(frozen=True)
class _State:
    """What a lookup works on. Arrays are only ever added to; what outgrows them is a new state.

    `slots` are the places of the hash table, each a code or 0. By code: `words` (as many arrays
    as the longest identity has words) and `odd`. Code 0 is nobody's.
    """

    slots: Ints
    words: tuple[Words, ...]
    odd: Bools

    @property
    def shift(self) -> np.uint64:
        return np.uint64(65 - len(self.slots).bit_length())

    @property
    def capacity(self) -> int:
        return len(self.odd)


class CodeTable:
    """Identities, each of some words, to dense codes from 1 on.

    Reading takes no lock: words are written before the slot that leads to them. `most` codes
    raise TooManyCodes. The first word tells how many words there are, and is never all ones.
    """

    def __init__(self, most: int, hashed: Hash = mixed, capacity: int = 1024) -> None:
        self._most = most
        self._hashed = hashed
        self._lock = threading.Lock()
        self._state = _new_state(capacity, 1)
        self._texts: list[Any] = []
        self.size = 0
        self.some_odd = False

    @property
    def odd(self) -> Bools:
        """By code: whether SQL has to judge this identity. Longer than `size` says."""
        return self._state.odd

    @property
    def first_words(self) -> Words:
        """The first word of each code, from 1 on."""
        return self._state.words[0][1 : self.size + 1]

    @property
    def texts(self) -> list[Any]:
        """Arrow arrays that hold the text of each code, from 1 on."""
        return self._texts

    def codes(
        self,
        words: Sequence[Words],
        describe: Callable[[Ints], tuple[Any, Bools]],
    ) -> Ints:
        """The code of each row; unknown identities get one.

        `describe` gives the texts of some rows as an Arrow array, and which of them are odd.
        """
        hashes = self._hashed(words)
        found = _find(self._state, words, hashes)
        missing = np.flatnonzero(found == 0)
        if missing.size:
            some = [word[missing] for word in words]
            found[missing] = self._added(some, hashes[missing], missing, describe)
        return found

    def _added(
        self,
        words: Sequence[Words],
        hashes: Words,
        rows: Ints,
        describe: Callable[[Ints], tuple[Any, Bools]],
    ) -> Ints:
        def same(left: Ints, right: Ints) -> Bools:
            return _all(word[left] == word[right] for word in words)

        chosen = representatives(hashes, same)
        firsts = np.flatnonzero(chosen == np.arange(len(rows)))
        with self._lock:
            known = _find(self._state, [word[firsts] for word in words], hashes[firsts])
            new = firsts[known == 0]  # another thread may have been faster
            if new.size:
                texts, odd = describe(rows[new])
                self._add([word[new] for word in words], hashes[new], odd)
                self._texts.append(texts)
            return _find(self._state, words, hashes)

    def _add(self, words: Sequence[Words], hashes: Words, odd: Bools) -> None:
        count = len(hashes)
        if self.size + count > self._most:
            raise TooManyCodes
        state = self._room_for(self.size + count, len(words))
        codes = np.arange(self.size + 1, self.size + count + 1)
        for own, word in zip(state.words, words, strict=False):
            own[codes] = word
        state.odd[codes] = odd
        self.some_odd = self.some_odd or bool(odd.any())
        _enter(state, codes, hashes)
        self.size += count
        self._state = state

    def _room_for(self, size: int, width: int) -> _State:
        """A state with room for so many codes of so many words: at most half of it is full."""
        old = self._state
        if size < old.capacity and width <= len(old.words):
            return old
        state = _new_state(
            max(old.capacity, 1 << (size + 1).bit_length()), max(width, len(old.words))
        )
        known = slice(0, self.size + 1)
        for own, word in zip(state.words, old.words, strict=False):
            own[known] = word[known]
        state.odd[known] = old.odd[known]
        if self.size:
            codes = np.arange(1, self.size + 1)
            _enter(state, codes, self._hashed([word[codes] for word in state.words]))
        return state


def _new_state(capacity: int, width: int) -> _State:
    words = tuple(np.zeros(capacity, np.uint64) for _ in range(width))
    words[0][0] = np.iinfo(np.uint64).max
    return _State(np.zeros(2 * capacity, np.intp), words, np.zeros(capacity, np.bool_))


def _find(state: _State, words: Sequence[Words], hashes: Words) -> Ints:
    """The code of each row, 0 where it has none: from its slot on until an empty one."""
    last = len(state.slots) - 1
    places = (hashes >> state.shift).view(np.intp)
    found = state.slots.take(places, mode="clip")
    active = np.flatnonzero(~_equal(state, found, words) & (found != 0))
    for _ in range(last + 1):
        if not active.size:
            return found
        next_places = (places[active] + 1) & last
        codes = state.slots[next_places]
        places[active] = next_places
        found[active] = codes
        equal = _equal(state, codes, [word[active] for word in words])
        active = active[~equal & (codes != 0)]
    raise TooManyCollisions


def _equal(state: _State, codes: Ints, words: Sequence[Words]) -> Bools:
    """Whether each row's words are those of the code."""
    known = len(state.words)
    equal = _all(
        own.take(codes, mode="clip") == word for own, word in zip(state.words, words, strict=False)
    )
    for word in words[known:]:  # longer than any that this state knows
        equal &= word == 0
    return equal


def _enter(state: _State, codes: Ints, hashes: Words) -> None:
    """Give each code a slot: the first empty one from its hash on."""
    last = len(state.slots) - 1
    places = (hashes >> state.shift).view(np.intp)
    while codes.size:
        free = state.slots[places] == 0
        state.slots[places[free]] = codes[free]
        lost = state.slots[places] != codes
        codes, places = codes[lost], (places[lost] + 1) & last


def _all(parts: Any) -> Bools:
    result: Bools | None = None
    for part in parts:
        result = part if result is None else np.logical_and(result, part, out=result)
    assert result is not None
    return result
