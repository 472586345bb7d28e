"""A local Stripe over HTTP, with state and faults, and the sample readings.

For demos and tests. Nothing in production code imports it.

- `stripe_state`  what Stripe knows: meters, events, customers, and its rules
- `billing`       prices, subscriptions whose periods advance, invoices, checkout sessions
- `news`          what it has to say: events, ordinary and thin
- `webhooks`      delivering them: signed, repeated, reordered, retried
- `faults`        what goes wrong, decided by a seed
- `app`           the HTTP side: Stripe's routes and shapes, and `/_sandbox` to look behind them
- `server`        uvicorn around it
- `sample`        the Birmingham readings, as daily Parquet
"""
