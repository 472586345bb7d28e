"""The event records."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

AT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "stripe_events",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("type", sa.String(255), nullable=False),
        sa.Column("style", sa.String(20), nullable=False),
        sa.Column("api_version", sa.String(255)),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("account", sa.String(255)),
        sa.Column("created", AT, nullable=False),
        sa.Column("received", AT, nullable=False),
        sa.Column("source", sa.String(20), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("redeliveries", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("state", sa.String(20), nullable=False, server_default="received"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("last_error", sa.Text()),
        sa.Column("retry_at", AT),
        sa.Column("processed_at", AT),
    )
    op.create_index("ix_stripe_events_state", "stripe_events", ["state", "created"])
    op.create_index("ix_stripe_events_created", "stripe_events", ["created"])


def downgrade() -> None:
    op.drop_table("stripe_events")
