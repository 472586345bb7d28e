"""The event records: one row for each Stripe event, however often it is delivered.

The columns up to `payload` come from the event and are written once. The columns from `state` on
belong to the pipeline, which applies each event and sets its state in one transaction.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, String, Table, Text

from webhook_handler.database import UtcDateTime

metadata = MetaData()

stripe_events = Table(
    "stripe_events",
    metadata,
    Column("id", String(255), primary_key=True),  # Stripe's
    Column("type", String(255), nullable=False),
    Column("style", String(20), nullable=False),  # snapshot or thin
    Column("api_version", String(255)),
    Column("livemode", Boolean, nullable=False),
    Column("account", String(255)),  # only in events of connected accounts
    Column("created", UtcDateTime, nullable=False),  # by Stripe's clock
    Column("received", UtcDateTime, nullable=False),  # by ours
    Column("source", String(20), nullable=False),  # webhook; backstop: from Stripe's list
    Column("payload", Text, nullable=False),  # the body as Stripe sent it
    Column("redeliveries", Integer, nullable=False, server_default="0"),
    # received, processed, ignored or failed
    Column("state", String(20), nullable=False, server_default="received"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    Column("retry_at", UtcDateTime),  # not to be retried before
    Column("processed_at", UtcDateTime),
    Index("ix_stripe_events_state", "state", "created"),
    Index("ix_stripe_events_created", "created"),
)
