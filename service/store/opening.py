"""Which stores an address means."""

from dataclasses import dataclass

from service.callers import KeyStore
from service.store.database import open_database
from service.store.keys import NoKeys, SqlKeys
from service.store.memory import MemoryStore
from service.store.port import Rules, Store, Usage
from service.store.sql import SqlStore
from service.store.usage import MemoryUsage, SqlUsage


@dataclass(frozen=True, slots=True)
class Stores:
    """All that a service remembers, in one database that is opened once.

    Attributes:
        jobs: The jobs.
        keys: The API keys.
        usage: What callers have used today.
    """

    jobs: Store
    keys: KeyStore
    usage: Usage

    async def close(self) -> None:
        """Give connections back; harmless where that was done."""
        await self.jobs.close()
        await self.keys.close()


async def open_stores(url: str, rules: Rules | None = None, *, shared: bool = False) -> Stores:
    """The stores at an address, ready to use.

    Args:
        url: ``sqlite:///FILE``, ``postgresql://USER:PASSWORD@HOST/DATABASE``, or ``memory:`` for what ends with the
            process.
        rules: What all who share the jobs agree on.
        shared: Whether other processes on this machine have the same SQLite file, and are to be heard at once.

    Raises:
        ValueError: It is the address of something else.
        StoreUnavailableError: It cannot be reached.
        StoreError: Another version of this program has written it, or the database lets nobody in by that address.
    """
    if url == "memory:":
        return Stores(MemoryStore(rules), NoKeys(), MemoryUsage())
    if url.startswith(("sqlite:///", "postgresql://")) and url != "sqlite:///":
        database = await open_database(url)
        return Stores(SqlStore(database, rules, shared=shared), SqlKeys(database), SqlUsage(database))
    scheme = url.partition(":")[0]
    raise ValueError(f"a store's address must be sqlite:///FILE, postgresql://… or memory:, got {scheme}:…")


async def open_store(url: str, rules: Rules | None = None, *, shared: bool = False) -> Store:
    """The jobs alone; see :func:`open_stores`."""
    return (await open_stores(url, rules, shared=shared)).jobs
