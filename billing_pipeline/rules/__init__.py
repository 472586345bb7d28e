"""WHAT TO REPORT: from a day's inputs to the next meter events.

Pure functions over frozen dataclasses: no I/O and no clock; `now` is passed in.

- `model`          the values that all rules work on: meter, cell, meter event, state
- `day_inputs`     everything a day is planned from, and whether planning it again is of use
- `planning`       the plan: (target, recorded events, meter, now) → event, hold or nothing
- `holds`          usage on hold: reasons, who can lift each, and how
- `eligibility`    whether a customer's usage at an instant may be reported
- `segments`       a day is split where a billing period ends inside it
- `timestamps`     where inside its usage day an event is stamped
- `values`         which numbers may be reported
- `recorded`       what Stripe has recorded for a cell
- `gate`           whether a day's counts are plausible
- `adjustments`    what becomes of usage that its own period no longer accepts
- `agreement`      whether Stripe's summary agrees with what was accepted
- `reconciliation` from readings to invoice, each difference with a cause
"""
