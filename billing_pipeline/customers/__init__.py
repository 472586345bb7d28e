"""WHO PAYS: organization ↔ Stripe customer, its subscriptions and their periods.

- `tables`      imported customers, and what Stripe events show
- `objects`     the fields that we read of Stripe's objects
- `read_model`  events folded into the tables, in any order of arrival
- `directory`   who pays today, what may be reported for them, and contradictions for a person

The mapping comes from a CSV of `organization_id,stripe_customer_id` and from completed checkouts.
The CSV is the file in `BILLING_CUSTOMERS_FILE`, read at the start of each run, or the one given to
`billing customers import`. An imported customer wins; a contradiction is shown.
"""
