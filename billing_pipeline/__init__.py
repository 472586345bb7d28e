"""From sensor readings to a Stripe bill that is right.

A reading's way through this package:

- `usage` counts it,
- `rules` decides what to report,
- `ledger` writes that down before it is sent,
- `stripe_api` sends it and checks what Stripe counted,
- `customers` knows who pays, and `stripe_events` applies what Stripe reports back.

`operations` has one use case per file and joins these. Dagster (`defs`) and people (`cli`) come in
through it.
"""

__version__ = "0.1.0"
