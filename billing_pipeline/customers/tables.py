"""The customers' tables: what people imported, and what Stripe's events say.

`customers` is a person's word. Everything below it is a read model, folded from Stripe's events
in whatever order they arrive; `as_of` is the time of the event that an object's row shows.
Instants of Stripe's are unix seconds, as Stripe gives them.
"""

from __future__ import annotations

from sqlalchemy import Column, Integer, String, Table, Text

from billing_pipeline.database import BigInt, UtcDateTime, metadata

ID = String(255)

customers = Table(
    "customers",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("stripe_customer_id", ID, nullable=False),
    Column("source", Text, nullable=False),  # the file it was imported from
    Column("changed_at", UtcDateTime, nullable=False),
)

learned_customers = Table(
    "learned_customers",
    metadata,
    # Every customer that an event has named for an organization.
    Column("organization_id", Text, primary_key=True),
    Column("stripe_customer_id", ID, primary_key=True),
    Column("learned_at", UtcDateTime, nullable=False),
    Column("event_id", ID, nullable=False),
)

deleted_customers = Table(
    "deleted_customers",
    metadata,
    Column("stripe_customer_id", ID, primary_key=True),
    Column("event_id", ID, nullable=False),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("subscription_id", ID, primary_key=True),
    Column("stripe_customer_id", ID, nullable=False, index=True),
    Column("status", ID, nullable=False),  # as Stripe says it, known to us or not
    Column("plan", Text, nullable=False),  # ids of its prices
    Column("meters", Text),  # JSON list of the meters it bills; null: not known
    Column("start_at", BigInt, nullable=False),
    Column("end_at", BigInt),  # when it ended or is to end
    Column("as_of", UtcDateTime, nullable=False),
    Column("event_id", ID, nullable=False),
)

billing_periods = Table(
    "billing_periods",
    metadata,
    # Every billing period ever seen; its invoice is the one with the same bounds.
    Column("subscription_id", ID, primary_key=True),
    Column("start_at", BigInt, primary_key=True),
    Column("end_at", BigInt, primary_key=True),
)

invoices = Table(
    "invoices",
    metadata,
    Column("invoice_id", ID, primary_key=True),
    Column("stripe_customer_id", ID, nullable=False),
    Column("subscription_id", ID, index=True),
    Column("status", ID, nullable=False),  # any but draft and deleted is final
    Column("billing_reason", ID),
    Column("start_at", BigInt, nullable=False),  # of the usage it bills
    Column("end_at", BigInt, nullable=False),
    Column("payment_attempts", Integer, nullable=False),
    Column("finalizes_at", BigInt),  # when a draft is to become final, where Stripe says so
    Column("finalized_at", BigInt),
    Column("as_of", UtcDateTime, nullable=False),
    Column("event_id", ID, nullable=False),
)
