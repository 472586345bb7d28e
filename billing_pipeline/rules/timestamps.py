"""Where inside its usage day an event is stamped. All instants are UTC, in unix seconds."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

from billing_pipeline.stripe_facts import OLDEST_REPORTED

ROOM = 3600
"""A first report is stamped this many seconds before the end, for a whole day at 23:00:00. That is
late enough to be the last value of a `last` meter, and leaves 3,599 seconds for corrections."""

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


def day_start(day: date) -> int:
    """The first second of a UTC day."""
    return int(datetime.combine(day, time(), tzinfo=UTC).timestamp())


def day_of(instant: int) -> date:
    """The UTC day of an instant in unix seconds."""
    return date.fromordinal(EPOCH_ORDINAL + instant // 86_400)


def day_end(day: date) -> int:
    """The second after a UTC day's last one."""
    return day_start(day) + 86_400


def stamp(start: int, end: int, after: int | None, at: int | None = None) -> int | None:
    """The timestamp of the next event about [start, end); None if no second is left.

    `after` is the highest timestamp reported so far, `at` an instant that was asked for.
    """
    chosen = max(end - ROOM, (start + end) // 2) if at is None else at
    if after is not None:
        chosen = max(chosen, after + 1)
    return chosen if start <= chosen < end else None


def too_old(timestamp: int, now: datetime) -> bool:
    """Whether Stripe may refuse an event with this timestamp for its age."""
    return timestamp < (now - OLDEST_REPORTED).timestamp()


def is_over(day: date, now: datetime) -> bool:
    """Whether the UTC day has ended."""
    return now.timestamp() >= day_end(day)
