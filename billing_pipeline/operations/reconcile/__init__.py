"""Reconcile a month: readings → snapshot → ledger → Stripe's summary → invoice line.

- `month`    the use case: one month, and the file it is kept in
- `rows`     what comes out: one row per organization, meter and billing period
- `tallies`  figures added up day by day
- `figures`  what one usage day adds: readings, snapshot, ledger, and why they differ
- `verdict`  Stripe's side of a row, its status, and the causes that invoices have
"""
