"""Carry-forward: decisions about usage that its own period no longer accepts."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
AT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "adjustments",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("usage_day", sa.Date(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("event_name", sa.String(100), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("hold_reason", sa.String(50), nullable=False),
        sa.Column("approved", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("run", sa.String(255), nullable=False),
        sa.Column("decided_at", AT, nullable=False),
    )
    op.create_table(
        "adjustment_entries",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("adjustment_id", sa.String(40), nullable=False),
        sa.Column("usage_day", sa.Date(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("event_name", sa.String(100), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("taken_out", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_adjustment_entries_usage_day", "adjustment_entries", ["usage_day"])
    op.add_column(
        "held_usage",
        sa.Column("difference", BIG, nullable=False, server_default="0"),
    )
    # On a `sum` meter the held value was the difference; on a `last` meter the next plan says it.
    op.execute("UPDATE held_usage SET difference = value")
