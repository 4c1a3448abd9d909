"""How alembic runs the steps: on the connection and in the transaction of whoever opens the store."""

from alembic import context

from service.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
