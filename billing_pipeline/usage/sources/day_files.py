"""The files of a usage day: which ones lie in its folder, with their sizes and times of change.

The folder of a day is `reading_date=YYYY-MM-DD`. Files that do not end in parquet, csv or jsonl are
not read. They are listed as ignored, so that a forgotten export is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from billing_pipeline.errors import UnusableInput
from billing_pipeline.usage.sources.folders import File, Folder

FORMATS = ("parquet", "csv", "jsonl")


@dataclass(frozen=True)
class DayFiles:
    """The listing of one day's folder. `exists` is False if there is no such folder."""

    usage_day: date
    exists: bool
    files: tuple[File, ...] = ()
    ignored: tuple[str, ...] = ()


def folder_name(day: date) -> str:
    """The folder of a UTC day's readings, below the folder of all readings."""
    return f"reading_date={day.isoformat()}"


def list_day(readings: Folder, day: date) -> DayFiles:
    """List a day's files. A day without a folder has no readings.

    Raises UnusableInput for an empty file, because its writer has not finished, and if the folder
    of all readings is missing.
    """
    try:
        listing = readings.files(folder_name(day))
    except NotADirectoryError:
        raise UnusableInput(f"{folder_name(day)} is not a folder") from None
    if listing is None:
        if not readings.exists():
            # Not mounted, renamed or misspelled: this is not a day without readings.
            raise UnusableInput(
                f"the readings folder {readings.path()} does not exist (BILLING_READINGS_URI)"
            )
        return DayFiles(day, exists=False)
    visible = [file for file in listing if not file.name.startswith(".")]
    files = tuple(file for file in visible if format_of(file.name) in FORMATS)
    for file in files:
        if file.size == 0:
            raise UnusableInput(
                f"{folder_name(day)}/{file.name} is empty (0 bytes): its writer did not "
                "finish. Write it again or remove it."
            )
    ignored = tuple(file.name for file in visible if format_of(file.name) not in FORMATS)
    return DayFiles(day, True, files, ignored)


def format_of(name: str) -> str:
    """The ending of a file's name, which gives its format."""
    return name.rsplit(".", 1)[-1] if "." in name else ""
