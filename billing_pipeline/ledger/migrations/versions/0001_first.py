"""The first schema: ledger, held usage, history, verifications, customers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
AT = sa.DateTime(timezone=True)
UNRESOLVED = sa.text("state IN ('planned', 'sending', 'ambiguous')")


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("account_id", sa.String(255)),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("seen_at", AT, nullable=False),
    )
    op.create_table(
        "meters",
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("meter_id", sa.String(255), nullable=False),
        sa.Column("formula", sa.String(20), nullable=False),
        sa.Column("event_time_window", sa.String(20)),
        sa.Column("customer_key", sa.String(100), nullable=False),
        sa.Column("value_key", sa.String(100), nullable=False),
        sa.Column("seen_at", AT, nullable=False),
    )
    op.create_table(
        "meter_events",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("usage_day", sa.Date(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("event_name", sa.String(100), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("identifier", sa.String(100), nullable=False),
        sa.Column("customer", sa.String(255), nullable=False),
        sa.Column("value", BIG, nullable=False),
        sa.Column("target", BIG, nullable=False),
        sa.Column("timestamp", BIG, nullable=False),
        sa.Column("snapshot_id", sa.String(64)),
        sa.Column("planned_at", AT, nullable=False),
        sa.Column("planned_by", sa.String(255), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("first_attempt_at", AT),
        sa.Column("last_attempt_at", AT),
        sa.Column("accepted_at", AT),
        sa.Column("request_id", sa.String(255)),
        sa.Column("error_code", sa.String(255)),
        sa.Column("error_message", sa.Text()),
        sa.UniqueConstraint("identifier"),
        sa.UniqueConstraint("usage_day", "organization_id", "event_name", "revision"),
    )
    op.create_index(
        "ux_meter_events_one_unsettled",
        "meter_events",
        ["usage_day", "organization_id", "event_name"],
        unique=True,
        sqlite_where=UNRESOLVED,
        postgresql_where=UNRESOLVED,
    )
    op.create_index("ix_meter_events_state_usage_day", "meter_events", ["state", "usage_day"])
    op.create_table(
        "held_usage",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("value", BIG, nullable=False),
        sa.Column("target", BIG, nullable=False),
        sa.Column("reason", sa.String(50), nullable=False),
        sa.Column("since", AT, nullable=False),
    )
    op.create_table(
        "planned_days",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("snapshot_id", sa.String(64), nullable=False),
        sa.Column("planned_at", AT, nullable=False),
        sa.Column("run", sa.String(255), nullable=False),
    )
    op.create_table(
        "history",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("at", AT, nullable=False),
        sa.Column("run", sa.String(255), nullable=False),
        sa.Column("usage_day", sa.Date(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("event_name", sa.String(100), nullable=False),
        sa.Column("revision", sa.Integer()),
        sa.Column("from_state", sa.String(20)),
        sa.Column("to_state", sa.String(20), nullable=False),
        sa.Column("request_id", sa.String(255)),
        sa.Column("detail", sa.Text()),
    )
    op.create_index("ix_history_cell", "history", ["usage_day", "organization_id", "event_name"])
    op.create_table(
        "verifications",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("customer", sa.String(255), primary_key=True),
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("expected", BIG, nullable=False),
        sa.Column("reported", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("checked_at", AT, nullable=False),
        sa.Column("run", sa.String(255), nullable=False),
    )
    op.create_table(
        "customers",
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("stripe_customer_id", sa.String(255), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("changed_at", AT, nullable=False),
    )
