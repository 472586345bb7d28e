"""WHAT TO SAY: from usage and what was reported before to the next meter events.

Pure functions over frozen dataclasses: no I/O and no clock of their own; `now` is passed in.

- `vocabulary`  the words everything else uses: meter, cell, meter event, state, hold
- `values`      which numbers may be reported at all
- `timestamps`  where inside its usage day an event is stamped
- `eligibility`       under which subscriptions a customer may be reported, and what is closed
- `segments`    parts of a day that a billing period ends in
- `recorded_value`    what Stripe has recorded for a cell, as far as the ledger knows
- `gates`       whether a day's counts are plausible, or wait for a person
- `planning`    the rules: (target, what was reported, the meter, now) → event, hold or nothing
- `adjustments` what becomes of usage that its own period no longer accepts
- `agreement`   whether Stripe's summary agrees with what was accepted
- `reconciling` from readings to invoice, each difference with a cause
"""
