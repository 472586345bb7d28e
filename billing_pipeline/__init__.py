"""From sensor readings to a Stripe bill that is right.

A reading's way through this package, top to bottom:

`usage` counts it, `metering` decides what to say about it, `ledger` writes that down,
`stripe_meters` says it and checks what Stripe heard, `customers` knows who pays.
`report` joins these rooms; `defs` and `cli` are its two doors.
"""

__version__ = "0.1.0"
