"""WHO PAYS: organization ↔ Stripe customer, its subscriptions and their periods.

- `tables`      what people imported, and what Stripe's events say
- `objects`     Stripe's objects, as much of each as we read
- `read_model`  folding events into the tables, in whatever order they arrive
- `directory`   who pays today, what may be reported for them, and what a person should look at

The mapping comes from a CSV of `organization_id,stripe_customer_id` (the file named by
`BILLING_CUSTOMERS_FILE`, read at the start of each run, or `billing customers import`) and from
completed checkouts. A person's word wins; a contradiction is shown.
"""
