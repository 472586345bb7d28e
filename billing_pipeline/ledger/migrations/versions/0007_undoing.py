"""What was undone, and by which run; days to be planned again; indexes by customer and by run."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "undone_cells",
        sa.Column("usage_day", sa.Date(), primary_key=True),
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("event_name", sa.String(100), primary_key=True),
        sa.Column("snapshot_id", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("run", sa.String(255), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column("runs", sa.Column("undoes", sa.String(255)))
    with op.batch_alter_table("planned_days") as planned_days:
        planned_days.alter_column(
            "planned_at", existing_type=sa.DateTime(timezone=True), nullable=True
        )
    op.create_index("ix_meter_events_customer_timestamp", "meter_events", ["customer", "timestamp"])
    op.create_index("ix_meter_events_planned_by", "meter_events", ["planned_by"])
