"""Workers, what they tell of running jobs, and how large the pictures of waiting jobs are."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables. What is lost in a crash without harm is not written to PostgreSQL's log."""
    name = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
    op.create_table(
        "progress",
        sa.Column("job_id", name, primary_key=True),
        sa.Column("watched_until", sa.Double, nullable=False),
        sa.Column("fence", sa.BigInteger),
        sa.Column("number", sa.BigInteger),
        sa.Column("told", sa.LargeBinary),
        prefixes=["UNLOGGED"] if op.get_bind().dialect.name == "postgresql" else [],
    )
    op.add_column("jobs", sa.Column("weight", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "workers",
        sa.Column("worker", name, primary_key=True),
        sa.Column("seen", sa.Double, nullable=False),
        sa.Column("told", sa.Text, nullable=False),
    )
