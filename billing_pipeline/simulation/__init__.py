"""Simulated worlds in which the production code bills. One integer seed decides each world.

Planning, ledger, delivery, verification and the handling of Stripe events are the production code,
on a simulated clock. The simulated Stripe refuses requests, loses answers, fails after it counted,
rejects later, forgets identifiers, lags and finalizes invoices. The process dies at any point where
it uses the database or the network. At the end the faults stop. An oracle derives the bill a second
time: it must agree, or the ledger must give the reason of each difference.

- `crash_points`  where the process may die, or another run may interrupt it
- `transport`     the official SDK connected to the sandbox without a socket
- `readings`      simulated readings, and the usage that they prove at any instant
- `world`         organizations, customers, subscriptions, faults, and the steps of a history
- `oracle`        the second derivation of the bill
- `runner`        runs the history of a seed, judges its end, and shortens a failing one
"""
