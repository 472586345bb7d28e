"""What Stripe's events say: learned customers, subscriptions, periods, invoices, meter errors."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
AT = sa.DateTime(timezone=True)
ID = sa.String(255)


def upgrade() -> None:
    op.add_column("meters", sa.Column("changed_at", BIG))
    op.add_column("meter_events", sa.Column("rejected_at", AT))
    op.execute(
        "UPDATE meter_events SET rejected_at = coalesce(last_attempt_at, planned_at) "
        "WHERE state = 'rejected'"
    )
    _hold_parts_of_days()
    op.create_table(
        "learned_customers",
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("stripe_customer_id", ID, primary_key=True),
        sa.Column("learned_at", AT, nullable=False),
        sa.Column("event_id", ID, nullable=False),
    )
    op.create_table(
        "deleted_customers",
        sa.Column("stripe_customer_id", ID, primary_key=True),
        sa.Column("event_id", ID, nullable=False),
    )
    op.create_table(
        "subscriptions",
        sa.Column("subscription_id", ID, primary_key=True),
        sa.Column("stripe_customer_id", ID, nullable=False),
        sa.Column("status", ID, nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("meters", sa.Text()),
        sa.Column("start_at", BIG, nullable=False),
        sa.Column("end_at", BIG),
        sa.Column("as_of", AT, nullable=False),
        sa.Column("event_id", ID, nullable=False),
    )
    op.create_index("ix_subscriptions_stripe_customer_id", "subscriptions", ["stripe_customer_id"])
    op.create_table(
        "billing_periods",
        sa.Column("subscription_id", ID, primary_key=True),
        sa.Column("start_at", BIG, primary_key=True),
        sa.Column("end_at", BIG, primary_key=True),
    )
    op.create_table(
        "invoices",
        sa.Column("invoice_id", ID, primary_key=True),
        sa.Column("stripe_customer_id", ID, nullable=False),
        sa.Column("subscription_id", ID),
        sa.Column("status", ID, nullable=False),
        sa.Column("billing_reason", ID),
        sa.Column("start_at", BIG, nullable=False),
        sa.Column("end_at", BIG, nullable=False),
        sa.Column("payment_attempts", sa.Integer(), nullable=False),
        sa.Column("finalizes_at", BIG),
        sa.Column("finalized_at", BIG),
        sa.Column("as_of", AT, nullable=False),
        sa.Column("event_id", ID, nullable=False),
    )
    op.create_index("ix_invoices_subscription_id", "invoices", ["subscription_id"])
    op.create_table(
        "meter_errors",
        sa.Column("event_id", ID, primary_key=True),
        sa.Column("code", ID, primary_key=True),
        sa.Column("meter_id", ID),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("matched", sa.Integer(), nullable=False),
        sa.Column("window_start", AT, nullable=False),
        sa.Column("window_end", AT, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
    )


def _hold_parts_of_days() -> None:
    """A held part of a day has a start. SQLite changes no primary key: the table is made again."""
    before = sa.table(
        "held_usage",
        sa.column("usage_day", sa.Date()),
        sa.column("organization_id"),
        sa.column("event_name"),
        sa.column("value"),
        sa.column("target"),
        sa.column("reason"),
        sa.column("since", AT),
    )
    rows = [dict(row._mapping) for row in op.get_bind().execute(sa.select(before))]
    op.drop_table("held_usage")
    after = op.create_table(
        "held_usage",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("start_at", BIG, primary_key=True, autoincrement=False, server_default="0"),
        sa.Column("value", BIG, nullable=False),
        sa.Column("target", BIG, nullable=False),
        sa.Column("reason", sa.String(50), nullable=False),
        sa.Column("since", AT, nullable=False),
    )
    op.bulk_insert(after, [{**row, "start_at": 0} for row in rows])


def downgrade() -> None:
    for name in (
        "meter_errors",
        "invoices",
        "billing_periods",
        "subscriptions",
        "deleted_customers",
        "learned_customers",
    ):
        op.drop_table(name)
    op.drop_column("meters", "changed_at")
    op.drop_column("meter_events", "rejected_at")
    op.execute("DELETE FROM held_usage WHERE start_at <> 0")
    with op.batch_alter_table("held_usage") as batch:
        batch.drop_column("start_at")
