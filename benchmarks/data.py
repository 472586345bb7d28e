"""One day of readings as Parquet, the same on every machine: arithmetic, no random numbers.

10,000 organizations share 500,000 sensors by Zipf's law: the share of the n-th is in proportion to
1/n. Ids are strings, and rows are in the order of their arrival. One reading in a hundred arrives
twice: a tenth of these at the end of the first file, the others in a second file.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

DAY = date(2026, 1, 1)
SENSORS = 500_000
ORGANIZATIONS = 10_000
ROW_GROUP = 122_880

# Each sensor has one row in SENSORS rows: the factor is prime, so no sensor is skipped. Times
# differ from row to row, so that no two rows are one reading by accident.
_ROWS = """
CREATE TEMP VIEW arrived AS
SELECT
    i,
    format('org-{{:05}}', floor(pow({organizations} + 1, sensor / {sensors}))::INT)
        AS organization_id,
    format('sensor-{{:07}}', sensor) AS sensor_id,
    TIMESTAMPTZ '{day} 00:00:00+00' + to_microseconds(i * {step} + i * 104729 % {step})
        AS recorded_at,
    15 + (i * 7919 % 2000) / 100.0::DOUBLE AS value
FROM (SELECT range AS i, range * 262147 % {sensors} AS sensor FROM range({readings}))
"""


@dataclass(frozen=True)
class GeneratedDay:
    """A generated day: its folder, and what an exact count must find."""

    folder: Path
    readings: int

    @property
    def duplicates(self) -> int:
        """The number of rows that repeat a reading."""
        return len(range(0, self.readings, 100))

    @property
    def sensors(self) -> int:
        """The number of sensors with a reading."""
        return min(self.readings, SENSORS)

    @property
    def paths(self) -> list[str]:
        """The day's files."""
        return sorted(str(path) for path in self.folder.glob("*/*.parquet"))


def generate(home: Path, readings: int) -> GeneratedDay:
    """A day with this many readings, in a folder of `home`; an existing one is kept."""
    day = GeneratedDay(home / f"readings-{readings}", readings)
    if not day.folder.exists():
        draft = home / f"draft-{readings}"  # an interrupted draft must not pass for a whole day
        shutil.rmtree(draft, ignore_errors=True)
        _write(draft / f"reading_date={DAY}", readings)
        draft.rename(day.folder)
    return day


def _write(folder: Path, readings: int) -> None:
    folder.mkdir(parents=True)
    step = 86_400_000_000 // readings
    with duckdb.connect() as connection:
        connection.execute(
            _ROWS.format(
                organizations=ORGANIZATIONS, sensors=SENSORS, day=DAY, step=step, readings=readings
            )
        )
        for name, rows in {
            "arrived": "FROM arrived UNION ALL FROM arrived WHERE i % 1000 = 0",
            "replayed": "FROM arrived WHERE i % 100 = 0 AND i % 1000 <> 0",
        }.items():
            connection.execute(
                f"COPY (SELECT * EXCLUDE (i) FROM ({rows})) TO '{folder / name}.parquet' "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP})"
            )
