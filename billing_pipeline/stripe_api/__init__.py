"""CALLS TO STRIPE: the only part that calls Stripe.

- `client`        the official SDK, pinned to one API version; only Stripe's own answers pass
- `answers`       the meaning of each answer to a meter event
- `retrying`      back-off, and reads that are retried and checked
- `budget`        how many summaries may be read in a month
- `catalogue`     the meters in Stripe: looked up, checked, created
- `delivery`      planned events are sent and become accepted
- `summaries`     Stripe's own figures, read
- `resolution`    old ambiguous events, decided by those figures
- `verification`  those figures, compared with the ledger
- `invoices`      the lines of invoices, and Stripe's figure of a whole billing period
- `objects`       objects and events that webhooks left open or did not deliver
"""
