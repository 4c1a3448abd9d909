"""Which jobs must outlive a crash of the database: all that were there before."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("durable", sa.Boolean, nullable=False, server_default=sa.true()))
