"""Benchmarks: `python -m benchmarks`, or `make bench`.

They report ratios measured in one run, because machines differ and are shared. No benchmark fails
because it is slow, but each asserts that its counts are right.

- `counting`      a usage snapshot compared with a bare DuckDB scan, and with other engines
- `lake`          finding the days that changed, and windows of many days
- `planning`      the plan of a day by number of organizations, and a backfill with nothing new
- `verification`  the figures of a day, compared with the sandbox
- `ledger`        questions to a large ledger on PostgreSQL
- `delivery`      delivery of meter events, compared with the rate that Stripe allows
- `clients`       the HTTP clients of Stripe's SDK
- `webhooks`      storing Stripe events, compared with bare inserts
- `data`          one generated day of readings
- `fixtures`      a sandbox process, databases, readings, an open context
- `machine`       a description of the machine
- `plot`          a picture of the results
"""
