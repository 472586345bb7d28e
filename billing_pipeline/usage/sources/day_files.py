"""The inputs of a usage day: which files lie in its folder, and what is known of each.

The folder of a day is `reading_date=YYYY-MM-DD`. Files with other endings than parquet, csv and
jsonl are not read; they are listed, so that a forgotten export is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from billing_pipeline.errors import UnusableInput
from billing_pipeline.usage.sources.folders import File, Folder

FORMATS = ("parquet", "csv", "jsonl")


@dataclass(frozen=True)
class DayInputs:
    """The listing of one day's folder. `exists` is False when there is no folder at all."""

    usage_day: date
    exists: bool
    files: tuple[File, ...] = ()
    ignored: tuple[str, ...] = ()


def folder_name(day: date) -> str:
    """Where the readings of a UTC day lie below the readings' folder."""
    return f"reading_date={day.isoformat()}"


def list_day(readings: Folder, day: date) -> DayInputs:
    """List a day's files. A day without a folder has no readings, and the listing says so.

    Raises UnusableInput for an empty file, which is one that was never finished, and when the
    folder of all readings is missing.
    """
    try:
        listing = readings.files(folder_name(day))
    except NotADirectoryError:
        raise UnusableInput(f"{folder_name(day)} is not a folder") from None
    if listing is None:
        if not readings.exists():
            # Not mounted, renamed or misspelt: not the same as a day on which nothing was read.
            raise UnusableInput(
                f"the readings folder {readings.path()} does not exist (BILLING_READINGS_URI)"
            )
        return DayInputs(day, exists=False)
    visible = [file for file in listing if not file.name.startswith(".")]
    files = tuple(file for file in visible if format_of(file.name) in FORMATS)
    for file in files:
        if file.size == 0:
            raise UnusableInput(
                f"{folder_name(day)}/{file.name} is empty (0 bytes): it was not finished. "
                "Write it again or remove it."
            )
    ignored = tuple(file.name for file in visible if format_of(file.name) not in FORMATS)
    return DayInputs(day, True, files, ignored)


def format_of(name: str) -> str:
    """A file's format, by its ending."""
    return name.rsplit(".", 1)[-1] if "." in name else ""
