"""The customers' table."""

from __future__ import annotations

from sqlalchemy import Column, String, Table, Text

from billing_pipeline.database import UtcDateTime, metadata

customers = Table(
    "customers",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("stripe_customer_id", String(255), nullable=False),
    Column("source", Text, nullable=False),  # the file it was imported from
    Column("changed_at", UtcDateTime, nullable=False),
)
