"""Benchmarks: `python -m benchmarks`, or `make bench`.

They report ratios measured in one run, because machines differ and are shared; none is a test
that can fail for being slow. What they count must be right, though, and that is asserted.

- `data`      one day of readings, generated
- `counting`  a usage snapshot against a bare DuckDB scan of the same columns, and other engines
- `lake`      finding the days that changed, and windows of many days
- `ledger`    what is asked of a large ledger on PostgreSQL
- `planning`  a day's plan by number of organizations, and a backfill with nothing new
- `delivery`  meter events from the ledger to the sandbox against the rate that Stripe allows
- `machine`   on what all this was measured
"""
