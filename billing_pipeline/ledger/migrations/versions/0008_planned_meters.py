"""The meters that a day was planned for."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("planned_days", sa.Column("meters", sa.Text()))
