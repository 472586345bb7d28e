"""A small ASGI service between Stripe and the pipeline: verify, store, answer; nothing else.

    Stripe → POST /stripe/webhook → signature → stripe_events (one row per event) → 200

- `settings`   the environment: one database URL and the signing secrets
- `signature`  whether a request comes from Stripe, and now
- `envelope`   what is read of an event's body before it is stored as it came
- `database`   opening the database, its transactions and migrations; the pipeline opens the same
- `tables`     the event records; `migrations/` builds them
- `store`      keeping events, once each
- `metrics`    what Prometheus reads
- `openapi.json`  the service described for machines
- `app`        the HTTP side
- `server`     the `webhook-handler` command: migrations, then uvicorn's workers

It imports neither Dagster nor billing_pipeline, and can be deployed alone.
"""
