"""Alembic's entry: runs migrations on the connection that `migrate` hands over."""

from alembic import context

import billing_pipeline.customers.tables
import billing_pipeline.ledger.tables  # noqa: F401  (both register on the metadata)
from billing_pipeline.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
