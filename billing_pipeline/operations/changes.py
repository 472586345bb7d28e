"""Which days have readings that changed since they were counted, or were never counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta

from billing_pipeline.operations.context import Context
from billing_pipeline.stripe_facts import OLDEST_REPORTED
from billing_pipeline.usage.activity import DAY_ERRORS
from billing_pipeline.usage.sources.day_files import list_day

GRACE = timedelta(minutes=15)
"""A day that has just ended is billed by the schedule."""

OLDER_AT_ONCE = 10
"""Older days looked at in one tick: a year of them in about half an hour."""


@dataclass(frozen=True, slots=True)
class ChangedDay:
    """A day to count again: how many files lie there, and a mark of what they are."""

    day: date
    files: int
    mark: str


def reportable_days(context: Context) -> list[date]:
    """The finished days that Stripe still accepts events for."""
    now = context.clock()
    last = (now - GRACE).date() - timedelta(days=1)
    first = max((now - OLDEST_REPORTED).date(), context.settings.billing_start_day)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def older_days(context: Context, start: str | None) -> tuple[list[date], date | None]:
    """A few counted days that Stripe no longer accepts, and where the next look begins.

    A day whose files are all gone is left alone: they were archived.
    """
    first = context.settings.billing_start_day
    last = reportable_days(context)[0] - timedelta(days=1)
    if first > last:
        return [], None
    at = first if start is None else date.fromisoformat(start)
    days = [at + timedelta(days=n) for n in range(OLDER_AT_ONCE) if at + timedelta(days=n) <= last]
    found = []
    for day in days:
        with suppress(*DAY_ERRORS):
            if context.usage.snapshot_id(day) is not None and list_day(context.readings, day).files:
                found.append(day)
    following = at + timedelta(days=OLDER_AT_ONCE)
    return found, following if following <= last else first


def changed_days(context: Context, days: Iterable[date]) -> list[ChangedDay]:
    """Those of these days whose snapshot does not say what their files say now."""
    found = []
    for day in days:
        files = 0
        try:
            there = list_day(context.readings, day)
            files = len(there.files)
            listing = json.dumps([(f.name, f.size, f.modified) for f in there.files])
            current = context.usage.is_current(day)
        except DAY_ERRORS as error:  # the run that this starts will say so, on its day
            listing, current = str(error), False
        if not current:
            mark = hashlib.sha256(listing.encode()).hexdigest()[:16]
            found.append(ChangedDay(day, files, mark))
    return found
