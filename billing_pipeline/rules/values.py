"""Which numbers may be reported: exact integers of at most 15 digits, a target never negative."""

from __future__ import annotations

from typing import Any

from billing_pipeline.stripe_facts import LARGEST_VALUE


class UsageDefect(Exception):
    """Usage that no correct count can produce. Nothing is clamped: the defect is upstream."""


def check_target(target: Any) -> int:
    """`target` if it is an int from 0 to LARGEST_VALUE, else UsageDefect.

    >>> check_target(28)
    28
    """
    if type(target) is not int:
        raise UsageDefect(f"usage must be an exact integer, not {target!r}")
    if not 0 <= target <= LARGEST_VALUE:
        raise UsageDefect(f"usage must lie between 0 and {LARGEST_VALUE}, not {target}")
    return target
