"""A local Stripe over HTTP, with state and faults, and the sample readings.

For demos and tests. No production code imports it.

- `stripe_state`  meters, meter events and customers, and Stripe's rules about them
- `billing`       prices, subscriptions whose periods advance, invoices, checkout sessions
- `events`        Stripe events: snapshot events and thin events
- `webhooks`      their delivery: signed, repeated, reordered, retried
- `faults`        which requests fail and how, decided by a seed
- `app`           the HTTP routes of Stripe, and `/_sandbox` to inspect and control the sandbox
- `server`        uvicorn around the application
- `sample`        the Birmingham readings as daily Parquet
- `demo`          the story that `billing demo` runs
"""
