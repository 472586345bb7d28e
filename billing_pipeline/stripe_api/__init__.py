"""SAYING IT: the only part that calls Stripe.

- `client`        the official SDK, made lazily, pinned, without telemetry
- `answers`       what each of Stripe's answers to a meter event means
- `budget`        how many of Stripe's figures may be read in a month
- `catalogue`     the meters in Stripe: looked up, checked, made
- `delivery`      from the ledger's planned events to accepted ones
- `objects`       reading objects and events that webhooks left open
- `summaries`     reading Stripe's own figures
- `invoices`      what an invoice bills, and Stripe's figure of a whole billing period
- `resolution`    deciding old ambiguous events by those figures
- `verification`  comparing those figures with the ledger
- `reporting`     a small Python API: state one organization's usage of one day
"""
