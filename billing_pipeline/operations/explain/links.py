"""One link of an explanation, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Link:
    """Two levels and whether they agree. `holds` is None if there is nothing to compare."""

    what: str
    holds: bool | None
    detail: str

    def as_json(self) -> dict[str, Any]:
        """As `billing explain --json` prints it."""
        return asdict(self)


def summary(links: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many links hold, are broken, or could not be compared."""
    found = [link["holds"] for link in links]
    return {
        "hold": found.count(True),
        "broken": found.count(False),
        "not_compared": found.count(None),
    }
