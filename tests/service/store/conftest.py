"""The stores that must all behave alike."""

import asyncio
import shutil

import pytest
import sqlalchemy as sa

from service.store.opening import open_store
from service.store.schema import JOBS, PROGRESS, TURNS, WORKERS
from tests.postgres import *  # noqa: F403


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def make(url):
    """Let a store make its tables."""
    await (await open_store(url)).close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """A file with empty tables."""
    file = tmp_path_factory.mktemp("store") / "jobs.db"
    asyncio.run(make(f"sqlite:///{file}"))
    return file


@pytest.fixture(scope="session")
def postgres_database(postgres_server):
    """The address of a database with tables, for one test after the other."""
    url = postgres_server.create("store")
    asyncio.run(make(url))
    return url


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store_url(request, tmp_path):
    """The address of a store of each kind."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres_database")
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "jobs.db")
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return "memory:"


@pytest.fixture
async def store(store_url):
    """An empty store of each kind."""
    opened = await open_store(store_url)
    if store_url.startswith("postgres"):
        async with opened._engine.begin() as connection:
            for table in (JOBS, TURNS, PROGRESS, WORKERS):
                await connection.execute(sa.delete(table))
    yield opened
    await opened.close()
