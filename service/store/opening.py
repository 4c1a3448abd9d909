"""Which store an address means."""

from service.store.memory import MemoryStore
from service.store.port import Rules, Store
from service.store.sql import open_sql_store


async def open_store(url: str, rules: Rules | None = None, *, shared: bool = False) -> Store:
    """The store at an address, ready to use.

    Args:
        url: ``sqlite:///FILE``, ``postgresql://USER:PASSWORD@HOST/DATABASE``, or ``memory:`` for one that ends with
            the process.
        rules: What all who share the store agree on.
        shared: Whether other processes on this machine have the same SQLite file, and are to be heard at once.

    Raises:
        ValueError: It is the address of something else.
        StoreUnavailableError: It cannot be reached.
        StoreError: Another version of this program has written it, or the database lets nobody in by that address.
    """
    if url == "memory:":
        return MemoryStore(rules)
    if url.startswith(("sqlite:///", "postgresql://")) and url != "sqlite:///":
        return await open_sql_store(url, rules, shared=shared)
    scheme = url.partition(":")[0]
    raise ValueError(f"a store's address must be sqlite:///FILE, postgresql://… or memory:, got {scheme}:…")
