"""WHAT WAS USED: from readings to sensor activity to a usage snapshot.

Knows nothing of Stripe, Dagster or the ledger. SQL defines what counts. DuckDB or Spark run it; for
days of Parquet, a kernel of NumPy counts the plain rows and leaves only the others to SQL.

- `sources`    folders of files, by URI, and the files of a usage day
- `readings`   the readings contract: a day's files as one typed relation
- `activity`   exact counting: one row per sensor and usage day, duplicates removed
- `kernel`     the fast count of a day's plain rows
- `spark`      the same counting on a Spark cluster, for days too large for one machine
- `snapshot`   one row per organization and usage day, from the activity of the window's days
- `segments`   usage of the segments of a day in which a billing period ends
- `duplicates` the readings of an organization that had more than one row
- `counted`    all of this as the one source of usage that the operations read
- `engine`     DuckDB connections, and the texts of `sql/`
- `validity`   which rows are valid
"""
