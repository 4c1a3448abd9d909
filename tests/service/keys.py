"""API keys for tests, kept as the service keeps them."""

import asyncio
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

from service.callers import Allowance, Scope, mint
from service.store.keys import open_keys


@cache
def template():
    """A file with empty tables: to make them takes longer than a test."""
    file = Path(tempfile.mkdtemp(prefix="superdiff-keys-")) / "keys.sqlite"
    asyncio.run(_made(f"sqlite:///{file}"))
    return file


async def _made(url):
    await (await open_keys(url, make=True)).close()


class KeysIn:
    """The keys in a SQLite file, asked one question at a time, as by another process."""

    def __init__(self, file):
        self.url = f"sqlite:///{file}"
        if not file.exists():
            shutil.copy(template(), file)

    def __getattr__(self, name):
        async def ask(*given):
            store = await open_keys(self.url)
            try:
                return await getattr(store, name)(*given)
            finally:
                await store.close()

        return lambda *given: asyncio.run(ask(*given))


class NewKey:
    """A key, kept, with the header that carries it."""

    def __init__(self, store, name, *scopes, expires=None, **allowance):
        given = frozenset(scopes or [Scope.GENERATE]), Allowance(**allowance), time.time(), expires
        self.text, self.key = mint(name, *given)
        store.add(self.key)
        self.headers = {"Authorization": f"Bearer {self.text}"}
