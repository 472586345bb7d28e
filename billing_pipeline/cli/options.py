"""Options that several commands share, and how their values are read."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

import typer


def _written_as(pattern: str, shape: str) -> Callable[[str], date]:
    """A parser of dates that are written in just this way. It raises BadParameter."""

    def parse(text: str) -> date:
        with suppress(ValueError):
            found = datetime.strptime(text, pattern).replace(tzinfo=UTC).date()
            if found.strftime(pattern) == text:
                return found
        raise typer.BadParameter(f"{text!r} is not a date written as {shape}")

    return parse


a_day = _written_as("%Y-%m-%d", "YYYY-MM-DD")
a_month = _written_as("%Y-%m", "YYYY-MM")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
From = Annotated[date, typer.Option("--from", parser=a_day, metavar="DAY", help="First UTC day.")]
To = Annotated[
    date, typer.Option("--to", parser=a_day, metavar="DAY", help="Last UTC day, inclusive.")
]
RetryRejected = Annotated[
    bool,
    typer.Option(
        "--retry-rejected", help="Report again what Stripe rejected, once the cause is fixed."
    ),
]
Reason = Annotated[str, typer.Option(help="Reason, recorded in the audit trail.")]


def usage_days(first: date, last: date, start: date) -> list[date]:
    """The days from `first` to `last`, inclusive. `start` is the first day that is ever billed.

    Raises BadParameter if they are not usage days.
    """
    if first > last:
        raise typer.BadParameter(f"--from {first} is after --to {last}")
    if first < start:
        raise typer.BadParameter(f"{first} is before the first day, {start} (BILLING_START_DAY)")
    if last > datetime.now(UTC).date():
        raise typer.BadParameter(f"{last} is in the future (UTC)")
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]
