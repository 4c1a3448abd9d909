"""What is owed to a job's client when the job is over; the column for it held nothing before."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns."""
    op.drop_column("jobs", "callback")
    for column in (
        sa.Column("message_url", sa.Text),
        sa.Column("message_tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("message_due", sa.Double),
        sa.Column("message_outcome", sa.Text),
    ):
        op.add_column("jobs", column)
    owed = sa.text("message_due IS NOT NULL AND ended IS NOT NULL")
    op.create_index("jobs_owed", "jobs", ["message_due"], postgresql_where=owed, sqlite_where=owed)
