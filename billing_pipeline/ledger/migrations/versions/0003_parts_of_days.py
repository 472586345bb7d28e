"""An event says which part of a split day it speaks of."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("meter_events", sa.Column("part_start", BIG))
    op.add_column("meter_events", sa.Column("part_end", BIG))
