"""Where the process may die: every step that touches the database or the network is counted."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident


class Crash(BaseException):
    """The process is dead. No `except Exception` survives it, as none survives `kill -9`."""


class CrashPoints:
    """Counts steps, and lets something happen at one of them."""

    def __init__(self) -> None:
        self.count = 0
        self._dead = False
        self._at: int | None = None
        self._act: Callable[[], None] | None = None
        self._acting: int | None = None

    def arm(self, after: int, act: Callable[[], None] | None = None) -> None:
        """After so many steps from now: die, or do something in between."""
        self._at, self._act = self.count + after, act

    def disarm(self) -> None:
        """A new process: alive, with nothing to come."""
        self._dead, self._at, self._act = False, None, None

    def reach(self, *, between: bool = False) -> None:
        """One step. `between`: no transaction is open, so another run may come between."""
        if self._acting == get_ident():
            return  # what comes between is not itself interrupted
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
        """Run `act` in this thread without counting its steps."""
        self._acting = get_ident()
        try:
            act()
        finally:
            self._acting = None
