"""A simulated world in which the production code bills, from one integer seed.

Planning, ledger, delivery, verification and the handling of Stripe's events are the real ones,
on a simulated clock and over a Stripe that refuses, loses answers, counts and fails, rejects
late, forgets identifiers, lags and closes invoices. The process dies between any two steps that
touch the database or the network. Then the world becomes quiet, and an oracle that derives the
bill a second time must agree, or find each difference in the ledger with its reason.

- `steps`      where the process may die, or another run may come between
- `transport`  the official SDK talking to the sandbox without a socket
- `readings`   simulated readings, and the usage they prove at any instant
- `world`      organizations, customers, subscriptions, faults, and what may happen to them
- `oracle`     the second derivation, and what must never happen
- `runner`     one seed: a history, its quiet end, its verdict; and a failing one made short
"""
