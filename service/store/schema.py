"""The tables of a store in SQL. A change here needs a migration in ``migrations/versions``; a test compares the two.

Every index that a hot query uses is partial: it holds the jobs that wait, that are leased or that are not over, and
does not grow with those that are.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
    true,
)
from sqlalchemy.dialects import postgresql

METADATA: Final = MetaData()
VERSIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006")
"""The steps of the migrations, in their order; a test compares them with the files."""
VERSION: Final = VERSIONS[-1]
"""The step that a database of this version has."""

# Sorted by code points, so that every database and Python agree on the order.
_NAME: Final[Text] = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_WAITING: Final = "worker IS NULL AND ended IS NULL"
_LEASED: Final = "worker IS NOT NULL"
_OPEN: Final = "ended IS NULL"
_KEY_STANDS: Final = "idempotency_key IS NOT NULL AND state NOT IN ('failed', 'cancelled')"


def _index(name: str, *columns: str, where: str | None = None, unique: bool = False) -> Index:
    condition = None if where is None else text(where)
    return Index(name, *columns, unique=unique, postgresql_where=condition, sqlite_where=condition)


JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("id", _NAME, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("caller", _NAME, nullable=False),
    Column("request", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("created", Double, nullable=False),
    Column("models", Text, nullable=False),
    Column("components", Text, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("deadline", Double),
    Column("idempotency_key", Text),
    Column("request_digest", Text),
    Column("state", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("reason", Text),
    Column("status", Integer),
    Column("artifacts", Text, nullable=False),
    Column("checkpoint", Text),
    Column("checkpoint_step", Integer),
    Column("cancel_requested", Boolean, nullable=False),
    Column("label", Text),
    Column("weight", BigInteger, nullable=False, server_default=text("0")),
    Column("message_url", Text),
    Column("message_tries", Integer, nullable=False, server_default="0"),
    Column("message_due", Double),
    Column("message_outcome", Text),
    Column("durable", Boolean, nullable=False, server_default=true()),
    Column("fence", BigInteger, nullable=False),
    Column("worker", Text),
    Column("expires", Double),
    # Claims read this one alone.
    _index("jobs_waiting", "caller", "priority", "created", "id", "rows", where=_WAITING),
    _index("jobs_leased", "expires", where=_LEASED),
    _index("jobs_waiting_until", "deadline", where=f"{_WAITING} AND deadline IS NOT NULL"),
    _index("jobs_open", "caller", "created", "id", where=_OPEN),
    _index("jobs_newest", "created", "id"),
    _index("jobs_newest_of_caller", "caller", "created", "id"),
    _index("jobs_ended", "ended", "id", where="ended IS NOT NULL"),
    _index("jobs_owed", "message_due", where="message_due IS NOT NULL AND ended IS NOT NULL"),
    _index("jobs_idempotency", "caller", "idempotency_key", where=_KEY_STANDS, unique=True),
)

# When a caller was last served, as a count of claims; no row for one that never was.
TURNS: Final = Table(
    "turns",
    METADATA,
    Column("caller", _NAME, primary_key=True),
    Column("served", BigInteger, nullable=False),
    _index("turns_served", "served"),
)

# Of jobs that somebody in another process waits for: until when, and what their workers told last. It is lost where the
# database crashes, and nobody misses it.
PROGRESS: Final = Table(
    "progress",
    METADATA,
    Column("job_id", _NAME, primary_key=True),
    Column("watched_until", Double, nullable=False),
    Column("fence", BigInteger),
    Column("number", BigInteger),
    Column("told", LargeBinary),
)

WORKERS: Final = Table(
    "workers",
    METADATA,
    Column("worker", _NAME, primary_key=True),
    Column("seen", Double, nullable=False),
    Column("told", Text, nullable=False),
)

KEYS: Final = Table(
    "keys",
    METADATA,
    Column("id", _NAME, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("allowance", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("last_used", Double),
    Column("revoked", Double),
    _index("keys_in_use", "name", where="revoked IS NULL", unique=True),
)

# What a caller has used of its day, in pixel-steps; the day began with the first.
USAGE: Final = Table(
    "usage",
    METADATA,
    Column("caller", _NAME, primary_key=True),
    Column("began", Double, nullable=False),
    Column("used", BigInteger, nullable=False),
)
