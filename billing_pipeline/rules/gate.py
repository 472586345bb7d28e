"""The gate before a day is reported: are its counts plausible against the weeks before?

An outage of ingestion looks like a day of little use. On a `last` meter such a day, if it is the
last of a period, would bill the whole period at next to nothing. So the day waits for a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from billing_pipeline.rules.model import Usage


@dataclass(frozen=True, slots=True)
class Gates:
    """Thresholds. Readings are counts per day; ratios are to the median of the recent days.

    The defaults, and what the sample readings say of them: docs/gates.md.
    """

    enabled: bool = True
    recent_days: int = 28
    """How many earlier days a day is compared with: four weeks, so that weekdays weigh alike."""
    least_days: int = 7
    """With fewer counted days there is nothing to compare with, and the gate is open."""
    least_readings: int = 100
    """Smaller medians are not compared."""
    whole_low: float = 0.5
    whole_high: float = 3.0
    organization_low: float = 0.1
    organization_high: float = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Why the gate is closed: for one organization, or (None) for the whole day."""

    organization_id: str | None
    readings: int
    usual: float
    text: str


def implausible(
    usage: Mapping[str, Usage], recent: Sequence[Mapping[str, Usage]], gates: Gates
) -> list[Finding]:
    """What is implausible about a day's usage, compared with recent days; empty: the gate is open.

    Readings are compared, in all and by organization, and how many organizations have any.
    """
    if not gates.enabled or len(recent) < gates.least_days:
        return []
    found = []
    now, before = _readings(usage), [_readings(day) for day in recent]
    usual = median(before)
    if usual >= gates.least_readings:
        message = _off(now, usual, gates.whole_low, gates.whole_high)
        if message:
            found.append(Finding(None, now, usual, f"{message}, all organizations together"))
        present = median(_present(day) for day in recent)
        if not message and _present(usage) < gates.whole_low * present:
            text = f"{_present(usage)} organizations have readings; {present:g} are usual"
            found.append(Finding(None, now, usual, text))
    for organization in sorted({*usage, *(o for day in recent for o in day)}):
        readings = usage.get(organization, Usage()).reading_volume
        usual = median(day.get(organization, Usage()).reading_volume for day in recent)
        if usual >= gates.least_readings:
            message = _off(readings, usual, gates.organization_low, gates.organization_high)
            if message:
                found.append(Finding(organization, readings, usual, message))
    return found


def _off(readings: int, usual: float, low: float, high: float) -> str | None:
    if low * usual <= readings <= high * usual:
        return None
    return f"{readings} readings where {usual:g} are usual"


def _readings(usage: Mapping[str, Usage]) -> int:
    return sum(each.reading_volume for each in usage.values())


def _present(usage: Mapping[str, Usage]) -> int:
    return sum(each.reading_volume > 0 for each in usage.values())
