"""WHAT WAS REPORTED: the durable record of every meter event, written before it is sent.

- `tables`         the schema; `migrations/` builds it
- `ledger`         transactions to read, write, plan and deliver in; `locks` keep others out
- `account`        the Stripe account and mode of the ledger, and its meters
- `plans`          writing a plan; `events` every change of an event's state; `days` what each day
                   was planned from; `marks` which days to look at again
- `decisions`      runs, gate approvals, undone runs; `adjustments` amounts that were decided
- `evidence`       what Stripe's summaries should show; `error_reports`, `reads`
- `queries`        questions of people and reports, read only
"""
