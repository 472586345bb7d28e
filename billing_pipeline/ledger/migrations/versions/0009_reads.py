"""Reads of Stripe's summaries by day: they have a budget."""

import sqlalchemy as sa
from alembic import op

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "stripe_reads",
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("used", BIG, nullable=False),
    )
