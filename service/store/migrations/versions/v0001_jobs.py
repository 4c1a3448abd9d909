"""Jobs, and whose turn it is."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    name = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
    op.create_table(
        "jobs",
        sa.Column("id", name, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("caller", name, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("components", sa.Text, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("deadline", sa.Double),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_digest", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("started", sa.Double),
        sa.Column("ended", sa.Double),
        sa.Column("reason", sa.Text),
        sa.Column("status", sa.Integer),
        sa.Column("artifacts", sa.Text, nullable=False),
        sa.Column("checkpoint", sa.Text),
        sa.Column("checkpoint_step", sa.Integer),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("callback", sa.Text),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("expires", sa.Double),
    )
    waiting = "worker IS NULL AND ended IS NULL"
    _index("jobs_waiting", ["caller", "priority", "created", "id", "rows"], waiting)
    _index("jobs_leased", ["expires"], "worker IS NOT NULL")
    _index("jobs_waiting_until", ["deadline"], f"{waiting} AND deadline IS NOT NULL")
    _index("jobs_open", ["caller", "created", "id"], "ended IS NULL")
    _index("jobs_newest", ["created", "id"])
    _index("jobs_newest_of_caller", ["caller", "created", "id"])
    _index("jobs_ended", ["ended", "id"], "ended IS NOT NULL")
    standing = "idempotency_key IS NOT NULL AND state NOT IN ('failed', 'cancelled')"
    _index("jobs_idempotency", ["caller", "idempotency_key"], standing, unique=True)
    op.create_table(
        "turns",
        sa.Column("caller", name, primary_key=True),
        sa.Column("served", sa.BigInteger, nullable=False),
    )
    op.create_index("turns_served", "turns", ["served"])


def _index(name: str, columns: list[str], where: str | None = None, *, unique: bool = False) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(name, "jobs", columns, unique=unique, postgresql_where=condition, sqlite_where=condition)
