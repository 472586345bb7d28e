"""Alembic's entry: runs migrations on the connection that `database.migrate` passes."""

from alembic import context

from webhook_handler.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
