"""API keys in the database of the jobs; see :class:`service.callers.KeyStore`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.callers import Allowance, Key, KeyNameError, KeyStore, Scope
from service.store.database import OF_ANOTHER, Database, open_database, opened_to_read, version_of
from service.store.port import StoreError
from service.store.schema import KEYS, VERSIONS

_OWNER_ALONE: Final = 0o600


async def open_keys(url: str, *, make: bool = False) -> KeyStore:
    """The keys in a database.

    Args:
        url: As :func:`service.store.opening.open_store` has it.
        make: Whether to make a SQLite file that is not there; without, there are no keys in it.

    Raises:
        StoreUnavailableError: The database cannot be reached.
        StoreError: Another version of this program has written it, or it cannot keep keys.
    """
    if not is_database(url):
        if make:
            raise StoreError("a database in memory keeps no keys: set SUPERDIFF_DATABASE to a file or a server")
        return NoKeys()
    file = sa.make_url(url).database if url.startswith("sqlite:") else None
    if file is not None and not Path(file).exists():
        if not make:
            return NoKeys()
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            # Who asked for what is not every user's business.
            Path(file).touch(_OWNER_ALONE)
        except OSError as error:
            raise StoreError(f"{file} cannot be made: {error.strerror}") from error
    return SqlKeys(await open_database(url))


async def read_keys(url: str) -> KeyStore:
    """The keys in a database as they are now, to look at alone: it is neither made nor brought up to date.

    Args:
        url: As :func:`service.store.opening.open_stores` has it.

    Raises:
        StoreUnavailableError: The database cannot be reached.
        StoreError: Another version of this program has written it, or it is no database of ours.
    """
    if not is_database(url):
        return NoKeys()
    async with opened_to_read(url) as connection:
        version = None if connection is None else await connection.run_sync(version_of)
        if connection is None or version is None:
            return NoKeys()
        if version not in VERSIONS:
            raise StoreError(OF_ANOTHER)
        if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table(KEYS.name)):
            return NoKeys()
        return NoKeys(await _all(connection))


def is_database(url: str) -> bool:
    """Whether an address is that of a database, not of what ends with the process; StoreError for any other."""
    if url == "memory:":
        return False
    if url.startswith(("sqlite:///", "postgresql://")) and url != "sqlite:///":
        return True
    scheme = url.partition(":")[0]
    raise StoreError(f"SUPERDIFF_DATABASE must be sqlite:///FILE, postgresql://… or memory:, got {scheme}:…")


class NoKeys:
    """A store that keeps no new keys.

    Args:
        keys: That it has, to be looked at.
    """

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = keys

    async def add(self, key: Key) -> None:
        """Refuse."""
        raise StoreError("no database is open to keep keys in")

    async def find(self, key_id: str) -> Key | None:
        """The key of an id."""
        return next((key for key in self._keys if key.id == key_id), None)

    async def all(self) -> Sequence[Key]:
        """Every key."""
        return list(self._keys)

    async def revoke(self, key_id: str, when: float) -> None:
        """Nothing to do."""

    async def used(self, key_id: str, when: float) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""


class SqlKeys:
    """Keys in SQLite or PostgreSQL. Every question goes to the database, so a revoked key is refused at once.

    Args:
        database: Closed with this.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._engine = database, database.engine
        self._read, self._write = database.read, database.write

    async def add(self, key: Key) -> None:
        """Keep a new key; :class:`KeyNameError` where one that is not revoked has its name."""
        row = {
            **asdict(key),
            "scopes": json.dumps(sorted(key.scopes)),
            "allowance": json.dumps(asdict(key.allowance)),
        }
        try:
            async with self._write() as connection:
                await connection.execute(sa.insert(KEYS).values(row))
        except IntegrityError as error:
            detail = f"there is a key {key.name!r} already; revoke it first, or take another name"
            raise KeyNameError(detail) from error

    async def find(self, key_id: str) -> Key | None:
        """The key of an id."""
        async with self._read() as connection:
            found = (await connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id))).mappings().first()
        return None if found is None else _key(dict(found))

    async def all(self) -> Sequence[Key]:
        """Every key, revoked ones too, the oldest first."""
        async with self._read() as connection:
            return await _all(connection)

    async def revoke(self, key_id: str, when: float) -> None:
        """Withdraw a key; one that was withdrawn before stays as it is."""
        await self._change(sa.update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked.is_(None)).values(revoked=when))

    async def used(self, key_id: str, when: float) -> None:
        """Note that a key was used."""
        await self._change(sa.update(KEYS).where(KEYS.c.id == key_id).values(last_used=when))

    async def close(self) -> None:
        """Give connections back."""
        await self._database.close()

    async def _change(self, statement: sa.Update) -> None:
        async with self._write() as connection:
            await connection.execute(statement)


async def _all(connection: AsyncConnection) -> list[Key]:
    found = (await connection.execute(sa.select(KEYS).order_by(KEYS.c.created, KEYS.c.id))).mappings().all()
    return [_key(dict(row)) for row in found]


def _key(row: Mapping[str, Any]) -> Key:
    scopes = frozenset(map(Scope, json.loads(row["scopes"])))
    return Key(**{**row, "scopes": scopes, "allowance": Allowance(**json.loads(row["allowance"]))})
