"""A small ASGI service between Stripe and the pipeline: it verifies, stores and answers.

    Stripe → POST /stripe/webhook → signature → stripe_events (one row per event) → 200

- `settings`   the environment: one database URL and the signing secrets
- `signature`  whether Stripe signed a request, and recently
- `envelope`   the fields of an event that decide how it is stored
- `database`   opening the database that it shares with the pipeline, transactions, migrations
- `tables`     the event records; `migrations/` creates them
- `store`      storing each event once
- `metrics`    metrics for Prometheus
- `openapi.json`  the description of the HTTP API
- `app`        the HTTP side
- `server`     the `webhook-handler` command: migrations, then uvicorn's workers

It imports neither Dagster nor billing_pipeline, and is deployed alone.
"""
