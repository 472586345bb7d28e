"""The customers' tables: what people imported, and what Stripe events show.

People import `customers`. The other tables are a read model, folded from Stripe events in any order
of arrival; `as_of` is the time of the event that an object's row shows. Times of Stripe's are unix
seconds, as Stripe gives them.
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
    # Every customer that an event named for an organization.
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
    Column("status", ID, nullable=False),  # Stripe's, known to us or not
    Column("plan", Text, nullable=False),  # ids of its prices
    Column("meters", Text),  # JSON list of the meters it bills; null: unknown
    Column("start_at", BigInt, nullable=False),
    Column("end_at", BigInt),  # when it ended or will end
    Column("as_of", UtcDateTime, nullable=False),
    Column("event_id", ID, nullable=False),
)

billing_periods = Table(
    "billing_periods",
    metadata,
    # Every billing period ever seen; its invoice has the same start and end.
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
    Column("status", ID, nullable=False),  # every status but draft and deleted is final
    Column("billing_reason", ID),
    Column("start_at", BigInt, nullable=False),  # of the usage it bills
    Column("end_at", BigInt, nullable=False),
    Column("payment_attempts", Integer, nullable=False),
    Column("finalizes_at", BigInt),  # when Stripe will finalize a draft, if known
    Column("finalized_at", BigInt),
    Column("as_of", UtcDateTime, nullable=False),
    Column("event_id", ID, nullable=False),
)
