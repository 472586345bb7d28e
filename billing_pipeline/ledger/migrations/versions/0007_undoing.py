"""Which run an undoing undoes; indexes for asking by customer and by run."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("runs", sa.Column("undoes", sa.String(255)))
    with op.batch_alter_table("planned_days") as planned_days:
        planned_days.alter_column(
            "planned_at", existing_type=sa.DateTime(timezone=True), nullable=True
        )
    op.create_index("ix_meter_events_customer_timestamp", "meter_events", ["customer", "timestamp"])
    op.create_index("ix_meter_events_planned_by", "meter_events", ["planned_by"])
