"""WHO PAYS: organization ↔ Stripe customer.

The mapping comes from a CSV of `organization_id,stripe_customer_id`: the file named by
`BILLING_CUSTOMERS_FILE`, read at the start of each run, or `billing customers import`. A line
that contradicts another is reported and left out; the others count.
"""

from billing_pipeline.customers.directory import CustomerDirectory, ImportReport

__all__ = ["CustomerDirectory", "ImportReport"]
