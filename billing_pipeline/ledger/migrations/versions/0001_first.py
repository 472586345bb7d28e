"""The first schema: the ledger, the customers, and what Stripe events say of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
AT = sa.DateTime(timezone=True)
UNRESOLVED = sa.text("state IN ('ambiguous', 'planned', 'sending')")


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("account_id", sa.String(255)),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("seen_at", AT, nullable=False),
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
        "billing_periods",
        sa.Column("subscription_id", sa.String(255), primary_key=True),
        sa.Column("start_at", BIG, primary_key=True),
        sa.Column("end_at", BIG, primary_key=True),
    )
    op.create_table(
        "customers",
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("stripe_customer_id", sa.String(255), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("changed_at", AT, nullable=False),
    )
    op.create_table(
        "days",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("planned_from", sa.Text()),
        sa.Column("deadline", BIG),
        sa.Column("look_again", sa.Boolean(), nullable=False),
        sa.Column("planned_at", AT),
        sa.Column("run", sa.String(255), nullable=False),
        sa.Column("counted", sa.Text()),
    )
    op.create_table(
        "deleted_customers",
        sa.Column("stripe_customer_id", sa.String(255), primary_key=True),
        sa.Column("event_id", sa.String(255), nullable=False),
    )
    op.create_table(
        "gate_approvals",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("snapshot_id", sa.String(64), primary_key=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("run", sa.String(255), nullable=False),
        sa.Column("approved_at", AT, nullable=False),
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
        "holds",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("start_at", BIG, primary_key=True, autoincrement=False, server_default="0"),
        sa.Column("value", BIG, nullable=False),
        sa.Column("target", BIG, nullable=False),
        sa.Column("difference", BIG, nullable=False, server_default="0"),
        sa.Column("reason", sa.String(50), nullable=False),
        sa.Column("since", AT, nullable=False),
    )
    op.create_table(
        "invoices",
        sa.Column("invoice_id", sa.String(255), primary_key=True),
        sa.Column("stripe_customer_id", sa.String(255), nullable=False),
        sa.Column("subscription_id", sa.String(255)),
        sa.Column("status", sa.String(255), nullable=False),
        sa.Column("billing_reason", sa.String(255)),
        sa.Column("start_at", BIG, nullable=False),
        sa.Column("end_at", BIG, nullable=False),
        sa.Column("payment_attempts", sa.Integer(), nullable=False),
        sa.Column("finalizes_at", BIG),
        sa.Column("finalized_at", BIG),
        sa.Column("as_of", AT, nullable=False),
        sa.Column("event_id", sa.String(255), nullable=False),
    )
    op.create_index("ix_invoices_subscription_id", "invoices", ["subscription_id"])
    op.create_table(
        "learned_customers",
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("stripe_customer_id", sa.String(255), primary_key=True),
        sa.Column("learned_at", AT, nullable=False),
        sa.Column("event_id", sa.String(255), nullable=False),
    )
    op.create_table(
        "meter_errors",
        sa.Column("event_id", sa.String(255), primary_key=True),
        sa.Column("code", sa.String(255), primary_key=True),
        sa.Column("meter_id", sa.String(255)),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("matched", sa.Integer(), nullable=False),
        sa.Column("window_start", AT, nullable=False),
        sa.Column("window_end", AT, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
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
        sa.Column("segment_start", BIG),
        sa.Column("segment_end", BIG),
        sa.Column("snapshot_id", sa.String(64)),
        sa.Column("planned_at", AT, nullable=False),
        sa.Column("planned_by", sa.String(255), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("first_attempt_at", AT),
        sa.Column("last_attempt_at", AT),
        sa.Column("accepted_at", AT),
        sa.Column("rejected_at", AT),
        sa.Column("request_id", sa.String(255)),
        sa.Column("error_code", sa.String(255)),
        sa.Column("error_message", sa.Text()),
        sa.UniqueConstraint("identifier", name="uq_meter_events_identifier"),
        sa.UniqueConstraint(
            "usage_day",
            "organization_id",
            "event_name",
            "revision",
            name="uq_meter_events_usage_day_organization_id_event_name_revision",
        ),
    )
    op.create_index("ix_meter_events_customer_timestamp", "meter_events", ["customer", "timestamp"])
    op.create_index("ix_meter_events_planned_by", "meter_events", ["planned_by"])
    op.create_index("ix_meter_events_state_usage_day", "meter_events", ["state", "usage_day"])
    op.create_index(
        "ux_meter_events_one_unresolved",
        "meter_events",
        ["usage_day", "organization_id", "event_name"],
        unique=True,
        sqlite_where=UNRESOLVED,
        postgresql_where=UNRESOLVED,
    )
    op.create_table(
        "meters",
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("meter_id", sa.String(255), nullable=False),
        sa.Column("formula", sa.String(20), nullable=False),
        sa.Column("event_time_window", sa.String(20)),
        sa.Column("customer_key", sa.String(100), nullable=False),
        sa.Column("value_key", sa.String(100), nullable=False),
        sa.Column("changed_at", BIG),
        sa.Column("seen_at", AT, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("run", sa.String(255), primary_key=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("undoes", sa.String(255)),
        sa.Column("started_at", AT, nullable=False),
    )
    op.create_table(
        "stripe_reads",
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("used", BIG, nullable=False),
    )
    op.create_table(
        "subscriptions",
        sa.Column("subscription_id", sa.String(255), primary_key=True),
        sa.Column("stripe_customer_id", sa.String(255), nullable=False),
        sa.Column("status", sa.String(255), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("meters", sa.Text()),
        sa.Column("start_at", BIG, nullable=False),
        sa.Column("end_at", BIG),
        sa.Column("as_of", AT, nullable=False),
        sa.Column("event_id", sa.String(255), nullable=False),
    )
    op.create_index("ix_subscriptions_stripe_customer_id", "subscriptions", ["stripe_customer_id"])
    op.create_table(
        "undone_cells",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("snapshot_id", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("run", sa.String(255), nullable=False),
        sa.Column("undone_at", AT, nullable=False),
    )
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
