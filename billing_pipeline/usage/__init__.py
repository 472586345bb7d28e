"""WHAT WAS USED: from readings to sensor activity to a usage snapshot.

Knows nothing of Stripe, Dagster or the ledger. DuckDB says what counts; for days of Parquet a
kernel of NumPy counts the plain readings, and leaves only the others to DuckDB.

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
- `counted`    all of this as the one source that report ask
"""
