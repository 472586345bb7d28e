"""Grouping by hashing: find equal rows, and give identities dense codes.

Nothing is sorted. A row's hash leads to a slot of a table, and the row is compared in full with the
one there, so that a hash decides the speed and never the result. NumPy releases the interpreter's
lock in everything slow here; several threads may look up and add codes at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.intp]
"""Row numbers, codes or slots: indexes of arrays."""
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
"""64 bits of each row."""
Hash = Callable[[Sequence[Words]], Words]
"""From the words of each row to its hash. Words of zeros at the end must not change it."""

ROUNDS = 64
"""A half full table needs about ten. Only a hash that was built to collide needs more."""

_GOLDEN = 0x9E3779B97F4A7C15


class TooManyCollisions(Exception):
    """Too many different rows share a hash."""


class TooManyCodes(Exception):
    """There are more identities than codes."""


def mixed(words: Sequence[Words]) -> Words:
    """The usual hash: the sum of each word times its own odd number, mixed."""
    total = words[0] * np.uint64(_GOLDEN)
    for place, word in enumerate(words[1:], 1):
        total += word * np.uint64((_GOLDEN * (2 * place + 1) ^ place << 33) % 2**64 | 1)
    total ^= total >> np.uint64(32)
    total *= np.uint64(0xD6E8FEB86659FD93)
    return total


def representatives(hashes: Words, same: Callable[[Ints, Ints], Bools]) -> Ints:
    """For each row, the number of the row that represents all rows equal to it.

    `same` compares rows with rows, by their numbers. In each round, one row of every slot becomes
    the representative of the rows equal to it; the other rows go to the next round.
    """
    rows = len(hashes)
    bits = max(1, (2 * rows - 1).bit_length())
    slots = (hashes >> np.uint64(64 - bits)).view(np.intp)
    small = np.int32 if rows < 2**31 else np.int64  # half the memory is twice the cache
    table = np.empty(1 << bits, small)
    found = np.arange(rows, dtype=small)
    table[slots] = found
    active = np.flatnonzero(table.take(slots, mode="clip") != found)
    slots = slots.take(active, mode="clip")
    for _ in range(ROUNDS):
        if not active.size:
            return found.astype(np.intp)
        winners = table.take(slots, mode="clip").astype(np.intp)
        equal = same(active, winners)
        found[active[equal]] = winners[equal]
        active, slots = active[~equal], slots[~equal]
        table[slots] = active
        lost = table.take(slots, mode="clip") != active
        active, slots = active[lost], slots[lost]
    raise TooManyCollisions


_BLOCK = 4
"""Words that lie side by side: half a cache line, so that comparing them is one access."""


@dataclass(frozen=True)
class _State:
    """The arrays of a lookup. They are only added to; a larger state replaces one that is full.

    `slots` is the hash table: each slot has a code, or 0. `blocks` and `odd` are by code. Each
    block has _BLOCK words; the longest identity decides how many blocks there are. No identity has
    code 0.
    """

    slots: npt.NDArray[np.int32]
    blocks: tuple[Words, ...]
    odd: Bools

    @property
    def shift(self) -> np.uint64:
        return np.uint64(65 - len(self.slots).bit_length())

    @property
    def capacity(self) -> int:
        return len(self.odd)

    def write(self, codes: Ints, words: Sequence[Words]) -> None:
        for place, word in enumerate(words):
            self.blocks[place // _BLOCK][codes, place % _BLOCK] = word

    def words(self, codes: Ints) -> list[Words]:
        return [block[codes, place] for block in self.blocks for place in range(_BLOCK)]


class CodeTable:
    """Dense codes, from 1 on, for identities of some words each.

    Lookups need no lock: words are written before the slot that leads to them. More than `most`
    identities raise TooManyCodes. The first word says how many words there are, and never has all
    bits set.
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
        """By code: whether SQL must judge this identity. The array is longer than `size`."""
        return self._state.odd

    @property
    def first_words(self) -> Words:
        """The first word of each code, from 1 on."""
        return self._state.blocks[0][1 : self.size + 1, 0]

    @property
    def texts(self) -> list[Any]:
        """Arrow arrays that hold the text of each code, from 1 on."""
        return self._texts

    def codes(self, words: Sequence[Words], describe: Callable[[Ints], tuple[Any, Bools]]) -> Ints:
        """The code of each row. New identities get a code.

        `describe` returns the texts of some rows as an Arrow array, and which of them are odd.
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
            equal = np.ones(len(left), np.bool_)
            for word in words:
                equal &= word[left] == word[right]
            return equal

        chosen = representatives(hashes, same)
        firsts = np.flatnonzero(chosen == np.arange(len(rows)))
        with self._lock:
            known = _find(self._state, [word[firsts] for word in words], hashes[firsts])
            new = firsts[known == 0]  # another thread may have added them
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
        state.write(codes, words)
        state.odd[codes] = odd
        self.some_odd = self.some_odd or bool(odd.any())
        _enter(state, codes, hashes)
        self.size += count
        self._state = state

    def _room_for(self, size: int, width: int) -> _State:
        """A state for so many codes of so many words, with four slots or more for each code."""
        old = self._state
        if size < old.capacity and width <= _BLOCK * len(old.blocks):
            return old
        width = max(width, _BLOCK * len(old.blocks))
        state = _new_state(max(old.capacity, 1 << size.bit_length()), width)
        if self.size:
            codes = np.arange(1, self.size + 1)
            words = old.words(codes)
            state.write(codes, words)
            state.odd[codes] = old.odd[codes]
            _enter(state, codes, self._hashed(words))
        return state


def _new_state(capacity: int, width: int) -> _State:
    blocks = tuple(np.zeros((capacity, _BLOCK), np.uint64) for _ in range(0, width, _BLOCK))
    blocks[0][0] = np.iinfo(np.uint64).max
    return _State(np.zeros(4 * capacity, np.int32), blocks, np.zeros(capacity, np.bool_))


def _find(state: _State, words: Sequence[Words], hashes: Words) -> Ints:
    """The code of each row, or 0. Looks from the row's slot on to the first empty one."""
    last = len(state.slots) - 1
    places = (hashes >> state.shift).view(np.intp)
    found = state.slots.take(places, mode="clip").astype(np.intp)
    active = np.flatnonzero(_differ(state, found, words))
    active = active[found[active] != 0]
    for _ in range(last + 1):
        if not active.size:
            return found
        next_places = (places[active] + 1) & last
        codes = state.slots.take(next_places, mode="clip").astype(np.intp)
        places[active] = next_places
        found[active] = codes
        wrong = _differ(state, codes, [word.take(active, mode="clip") for word in words])
        active = active[wrong & (codes != 0)]
    raise TooManyCollisions


def _differ(state: _State, codes: Ints, words: Sequence[Words]) -> Bools:
    """Whether each row's words differ from those of its code."""
    wrong = np.zeros(len(codes), np.bool_)
    for number in range(0, len(words), _BLOCK):
        some = words[number : number + _BLOCK]
        if number // _BLOCK < len(state.blocks):
            # As items of 32 bytes, because NumPy copies each of those at once.
            items = state.blocks[number // _BLOCK].view(f"V{8 * _BLOCK}")[:, 0]
            block = items.take(codes, mode="clip").view(np.uint64).reshape(-1, _BLOCK)
            for place, word in enumerate(some):
                wrong |= block[:, place] != word
        else:  # longer than any identity in this state
            for word in some:
                wrong |= word != 0
    return wrong


def _enter(state: _State, codes: Ints, hashes: Words) -> None:
    """Put each code into the first empty slot from its hash on."""
    last = len(state.slots) - 1
    places = (hashes >> state.shift).view(np.intp)
    for _ in range(last + 1):
        if not codes.size:
            return
        free = state.slots[places] == 0
        state.slots[places[free]] = codes[free]
        lost = state.slots[places] != codes
        codes, places = codes[lost], (places[lost] + 1) & last

    raise TooManyCollisions
