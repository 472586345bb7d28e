"""An event says which part of a day with segments it speaks of."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("meter_events", sa.Column("segment_start", BIG))
    op.add_column("meter_events", sa.Column("segment_end", BIG))
