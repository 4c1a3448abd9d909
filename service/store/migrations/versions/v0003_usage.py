"""What callers have used of their day."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "usage",
        sa.Column("caller", sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql"), primary_key=True),
        sa.Column("began", sa.Double, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
    )
