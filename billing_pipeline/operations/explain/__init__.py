"""Explain a figure, from what Stripe bills down to the files that prove it.

Every link between two levels is checked while it is shown: what was counted then must lie there
now, what was reported must be what was planned, what Stripe says must be what was reported.

- `links`   one link and whether it holds
- `day`     one organization's usage day: report, snapshot, sensors, duplicates, files
- `period`  one organization's billing period: the reconciliation, and its days
- `page`    both as one HTML file that a support person can send to a customer
"""
