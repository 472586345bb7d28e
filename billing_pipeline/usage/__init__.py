"""WHAT WAS USED: from readings to sensor activity to a usage snapshot.

Knows nothing of Stripe, Dagster or the ledger. DuckDB says what counts; for days of Parquet a
kernel of NumPy settles the plain readings, and leaves only the others to DuckDB.

- `folders`    where readings and snapshots lie: local disk, or any URI fsspec reads
- `inputs`     the files of a usage day, with sizes and hashes
- `readings`   the readings contract: those files as one relation, typed, defects named
- `activity`   exact counting: one row per sensor and usage day, duplicates removed
- `kernel`     the plain readings of a day, fast; of `grouping` (equal rows find each other),
               `identity` (ids as machine words), `shares` (row groups and what is read of them),
               `runs` (rows dealt into parts, on disk if need be) and `limits` (of memory)
- `spark`      the same counting on a Spark cluster, for days too large for one machine
- `segments`   the same for parts of a day, where a billing period ends inside it
- `snapshot`   one row per organization and usage day, from the activity of the window's days
- `duplicates` which readings of an organization had more than one row
- `counted`    all of this as the one source that statements ask
"""

from billing_pipeline.usage.activity import (
    DAY_ERRORS,
    CountedDay,
    activity_for,
    activity_totals,
    count_day,
    load_counted,
    proven_by,
)
from billing_pipeline.usage.counted import CountedUsage, UsageSource
from billing_pipeline.usage.duplicates import duplicates_of
from billing_pipeline.usage.engine import Engine
from billing_pipeline.usage.folders import Folder
from billing_pipeline.usage.inputs import DayInputs, UnusableInput, list_day
from billing_pipeline.usage.segments import usage_in_segments
from billing_pipeline.usage.snapshot import (
    Snapshot,
    is_current,
    load_snapshot,
    snapshot_id_of,
    take_snapshot,
)

__all__ = [
    "DAY_ERRORS",
    "CountedDay",
    "CountedUsage",
    "DayInputs",
    "Engine",
    "Folder",
    "Snapshot",
    "UnusableInput",
    "UsageSource",
    "activity_for",
    "activity_totals",
    "count_day",
    "duplicates_of",
    "is_current",
    "list_day",
    "load_counted",
    "load_snapshot",
    "proven_by",
    "snapshot_id_of",
    "take_snapshot",
    "usage_in_segments",
]
