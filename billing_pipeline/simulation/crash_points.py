"""Crash points: every use of the database or the network, where the process may die."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident


class Crash(BaseException):
    """The process died. `except Exception` does not catch it, as nothing catches `kill -9`."""


class CrashPoints:
    """Counts crash points; at one of them the process dies, or another run interrupts it."""

    def __init__(self) -> None:
        self.count = 0
        self._dead = False
        self._at: int | None = None
        self._act: Callable[[], None] | None = None
        self._acting: int | None = None

    def arm(self, after: int, act: Callable[[], None] | None = None) -> None:
        """After this many crash points: call `act`; without it, die."""
        self._at, self._act = self.count + after, act

    def disarm(self) -> None:
        """Start a new process, with no crash ahead."""
        self._dead, self._at, self._act = False, None, None

    def reach(self, *, between: bool = False) -> None:
        """Pass a crash point. `between`: no transaction is open, so another run may interrupt."""
        if self._acting == get_ident():
            return  # the interrupting run is not interrupted itself
        if self._dead:
            raise Crash
        self.count += 1
        if self._at is None or self.count < self._at:
            return
        if self._act is None:
            self._dead = True
            raise Crash
        if between:
            act, self._at, self._act = self._act, None, None
            act()

    def uninterrupted(self, act: Callable[[], None]) -> None:
        """Call `act` in this thread without crash points."""
        self._acting = get_ident()
        try:
            act()
        finally:
            self._acting = None
