"""A database that jobs, keys and counts are kept in: opened and brought up to date once, for all of them.

SQLite has one writer at a time; within a process they come one after the other. On PostgreSQL the statements that every
job needs go past SQLAlchemy to the driver, whose own share of a call is a tenth of SQLAlchemy's.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, InvalidRequestError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.store.port import DiskFullError, StoreError, StoreUnavailableError
from service.store.schema import VERSION, VERSIONS

_BUSY_S: Final = 10.0
_MIGRATING: Final = 7_369_001  # the lock that lets one process at a time take the migrations' steps
_DISK_FULL: Final = "the store's disk is full; free some space, or keep finished jobs for a shorter time"
OF_ANOTHER: Final = "the store was written by another version of this program; run that one, or a newer one"
"""What is told of a database with steps of the migrations that this version does not know."""


class Database:
    """An open database.

    Attributes:
        engine: Of SQLAlchemy; begins transactions that read.
        writing: The same; begins transactions that write.
        postgres: Whether it is PostgreSQL, not SQLite.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.writing = engine.execution_options(write=True)
        self.postgres = engine.dialect.name == "postgresql"
        # SQLite lets others wait by sleeping, in no order.
        self._turn = asyncio.Lock()
        # Statement → its text for PostgreSQL, and the names of its parameters in their order.
        self._compiled: dict[sa.TextClause, tuple[str, Sequence[str]]] = {}

    async def one(
        self, statement: sa.TextClause, given: Mapping[str, Any], *, writes: bool = False
    ) -> Sequence[Mapping[Any, Any]]:
        """The rows of one statement that is a transaction of its own; on PostgreSQL in one round trip.

        Args:
            statement: Lives as long as the program: it is compiled once.
            given: Its parameters, and perhaps others.
            writes: Whether it writes.
        """
        if not self.postgres:
            async with self.write() if writes else self.read() as connection:
                return (await connection.execute(statement, given)).mappings().all()
        text, names = self._text(statement)
        async with told(), self.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            with wrapped(text):
                rows: Sequence[Mapping[Any, Any]] = await driver.fetch(text, *(given[name] for name in names))
                return rows

    def _text(self, statement: sa.TextClause) -> tuple[str, Sequence[str]]:
        if statement not in self._compiled:
            compiled: Any = statement.compile(dialect=self.engine.dialect)
            self._compiled[statement] = str(compiled), tuple(compiled.positiontup)
        return self._compiled[statement]

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        async with told(), self.engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes."""
        if self.postgres:
            async with told(), self.writing.begin() as connection:
                yield connection
        else:
            async with told(), self._turn, self.writing.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Give connections back; harmless where that was done."""
        await self.engine.dispose()


async def open_database(url: str) -> Database:
    """A database, its tables made or brought up to date; any number of processes may do so at once.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://…``.

    Raises:
        StoreUnavailableError: It cannot be reached.
        StoreError: Another version of this program has written it, or the database lets nobody in by that address.
    """
    engine = _engine(url)
    try:
        if engine.url.database and engine.dialect.name == "sqlite":
            await _make_file(Path(engine.url.database))
        async with told(), engine.execution_options(write=True).begin() as connection:
            if engine.dialect.name == "postgresql":
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
            if await connection.run_sync(version_of) != VERSION:
                await connection.run_sync(migrate)
    except BaseException:
        await engine.dispose()
        raise
    return Database(engine)


@asynccontextmanager
async def opened_to_read(url: str) -> AsyncIterator[AsyncConnection | None]:
    """A connection that reads a database as it is; None where a SQLite file is not there. Nothing is made or changed.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://…``.

    Raises:
        StoreUnavailableError: It cannot be reached.
        StoreError: The database lets nobody in by that address.
    """
    file = sa.make_url(url).database if url.startswith("sqlite:") else None
    if file is not None and not await asyncio.to_thread(Path(file).exists):
        yield None
        return
    engine = _engine(url, writes=False)
    try:
        async with told(), engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


def version_of(connection: sa.Connection) -> str | None:
    """The last of the steps of ``migrations`` that a database has; None where it has none."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


async def _make_file(file: Path) -> None:
    """Make an empty database where there is none, or tell by the system's own words why there can be none.

    One that is there is not opened here: to close it would take this process's own locks away, which other connections
    to it rely on (sqlite.org/howtocorrupt.html, section 2.2). Other processes would then remove the log that they read.
    """

    def make() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    try:
        await asyncio.to_thread(make)
    except OSError as error:
        raise StoreUnavailableError(f"the store's file cannot be written: {error.strerror}") from error


def migrate(connection: sa.Connection, to: str = "head") -> None:
    """Take the steps of ``migrations`` in the connection's transaction.

    Args:
        connection: In a transaction that nobody else can be in at the same time.
        to: The last step.

    Raises:
        StoreError: The database has steps that this version does not know.
    """
    if version_of(connection) not in {None, *VERSIONS}:
        raise StoreError(OF_ANOTHER)
    # Most starts have nothing to migrate, and need not import what does it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "service.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, to)


class _RollingBack(sqlite3.Connection):
    """A connection that gives its locks back as it is closed.

    A call that is given up leaves its cursor in the traceback of what ended it. SQLite keeps a connection with such a
    cursor open behind the scenes, its transaction and lock with it, until Python's collector comes by.
    """

    def close(self) -> None:
        """Roll back what is open, then close."""
        with contextlib.suppress(sqlite3.Error):
            self.rollback()
        super().close()


def _engine(url: str, *, writes: bool = True) -> AsyncEngine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+asyncpg")
        options = {} if writes else {"server_settings": {"default_transaction_read_only": "on"}}
        engine = create_async_engine(parsed, hide_parameters=True, connect_args=options)
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        return engine
    if not writes:
        parsed = parsed.set(database=f"file:{quote(parsed.database or '')}", query={"mode": "ro", "uri": "true"})
    arguments = {"factory": _RollingBack}
    engine = create_async_engine(
        parsed.set(drivername="sqlite+aiosqlite"), hide_parameters=True, connect_args=arguments
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        # Transactions are begun below, not by the driver's own guess.
        connection.isolation_level = None
        cursor = connection.cursor()
        lasting = ("journal_mode = WAL", "synchronous = FULL") if writes else ()
        for setting in (f"busy_timeout = {int(_BUSY_S * 1000)}", *lasting):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        # A transaction that reads first and then writes could not wait for another writer.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("write") else "BEGIN")

    return engine


def _refuse_closed(connection: Any, _: object, __: object) -> None:
    """Connect anew where the server has closed a connection meanwhile; to ask it would be three round trips."""
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError


@contextmanager
def wrapped(text: str) -> Iterator[None]:
    """The driver's errors as SQLAlchemy has them."""
    from asyncpg import InterfaceError as DriverError  # it is there where a connection is
    from asyncpg import PostgresError

    try:
        yield
    except PostgresError as error:
        raise DBAPIError(text, None, error, hide_parameters=True) from error
    except DriverError as error:
        raise InterfaceError(text, None, error, hide_parameters=True) from error


@asynccontextmanager
async def told() -> AsyncIterator[None]:
    """The driver's errors in the store's words."""
    try:
        yield
    except (OSError, TimeoutError, PoolTimeoutError) as error:
        raise StoreUnavailableError("the store cannot be reached; try again") from error
    except InvalidRequestError as error:
        # What SQLAlchemy says where the server closed each connection that was tried (see _refuse_closed).
        if str(error) != "This connection is closed":
            raise
        raise StoreUnavailableError("the store cannot be reached, or is busy; try again") from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == "53100" or "disk is full" in str(error.orig):
            raise DiskFullError(_DISK_FULL) from error
        state = getattr(error.orig, "sqlstate", None) or ""
        if state[:2] in {"28", "3D"}:
            detail = "the database does not let the service in; check the store's address, its user and password"
            raise StoreError(detail) from error
        # Lost connections, serialisation, resources, an operator at work.
        if isinstance(error, OperationalError | InterfaceError) or state[:2] in {"08", "40", "53", "55", "57"}:
            raise StoreUnavailableError("the store cannot be reached, or is busy; try again") from error
        raise
