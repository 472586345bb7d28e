"""The fast exact count of Parquet days, behind one function: `kernel.count_plain`.

- `kernel`   the counting, and what is left to SQL
- `shares`   which files it reads, and their rows in shares for threads
- `identity` ids as machine words
- `grouping` equal rows and dense codes, by hashing
- `runs`     rows dealt into buckets, in memory or on disk
- `limits`   how much is in memory at a time
"""
