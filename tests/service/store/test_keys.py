"""API keys in a database, SQLite and PostgreSQL alike."""

import asyncio
import shutil
import stat
from dataclasses import replace

import pytest
import sqlalchemy as sa

from service.callers import Allowance, KeyNameError, Scope, mint
from service.store.keys import open_keys, read_keys
from service.store.port import StoreError
from service.store.schema import KEYS, VERSION

pytestmark = pytest.mark.anyio
NOW = 1_000_000.0


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """A database with tables."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres_database")
    shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "jobs.db")
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
async def keys(url):
    """An empty table of keys."""
    opened = await open_keys(url)
    async with opened._engine.begin() as connection:
        await connection.execute(sa.delete(KEYS))
    yield opened
    await opened.close()


def minted(name="me"):
    return mint(name, frozenset({Scope.GENERATE}), Allowance(), NOW)


async def test_what_is_stored_comes_back_whole(keys):
    _, key = mint("é \"'", frozenset(Scope), Allowance(10, 2, 10**12), NOW, NOW + 1)
    await keys.add(key)
    assert await keys.find(key.id) == key
    await keys.used(key.id, NOW + 0.5)
    assert await keys.all() == [replace(key, last_used=NOW + 0.5)]


async def test_the_secret_is_not_stored(keys):
    text, key = minted()
    await keys.add(key)
    async with keys._engine.begin() as connection:
        (row,) = (await connection.execute(sa.select(KEYS))).all()
    assert text.split("_", 2)[2] not in repr(row)


async def test_two_keys_in_use_never_share_a_name(keys):
    (_, first), (_, second) = minted(), minted()
    await keys.add(first)
    with pytest.raises(KeyNameError, match="'me' already"):
        await keys.add(second)
    await keys.revoke(first.id, NOW)
    await keys.add(second)
    assert {key.id: key.revoked for key in await keys.all()} == {first.id: NOW, second.id: None}


async def test_a_key_is_revoked_once_and_for_good(keys):
    _, key = minted()
    await keys.add(key)
    await keys.revoke(key.id, NOW + 1)
    await keys.revoke(key.id, NOW + 2)
    await keys.used(key.id, NOW + 3)
    assert (await keys.find(key.id)).revoked == NOW + 1


async def test_what_is_not_there(keys):
    assert await keys.find("none") is None
    await keys.revoke("none", NOW)
    await keys.used("none", NOW)
    assert await keys.all() == []


async def test_many_at_once_lose_nothing(keys):
    added = [minted(f"key {i}")[1] for i in range(12)]
    await asyncio.gather(*(keys.add(key) for key in added))
    await asyncio.gather(*(keys.revoke(key.id, NOW) for key in added), *(keys.used(key.id, NOW) for key in added))
    found = await keys.all()
    assert {key.id for key in found} == {key.id for key in added}
    assert {(key.revoked, key.last_used) for key in found} == {(NOW, NOW)}


async def test_a_file_is_made_when_a_key_is_and_for_its_owner_alone(tmp_path):
    url = f"sqlite:///{tmp_path / 'deep' / 'keys.sqlite'}"
    looked = await open_keys(url)
    assert await looked.all() == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError):
        await looked.add(minted()[1])
    made = await open_keys(url, make=True)
    await made.add(minted()[1])
    await made.close()
    assert stat.S_IMODE((tmp_path / "deep" / "keys.sqlite").stat().st_mode) == 0o600


async def test_keys_are_looked_at_without_changing_the_database(keys, url, tmp_path):
    _, key = minted()
    await keys.add(key)
    looked = await read_keys(url)
    assert await looked.all() == [key]
    assert await looked.find(key.id) == key
    with pytest.raises(StoreError):
        await looked.add(minted("other")[1])
    async with keys._engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    try:
        with pytest.raises(StoreError, match="another version"):
            await read_keys(url)
    finally:
        async with keys._engine.begin() as connection:
            await connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{VERSION}'")  # noqa: S608
    assert await (await read_keys(f"sqlite:///{tmp_path}/none.sqlite")).all() == []
    assert not (tmp_path / "none.sqlite").exists()


async def test_in_a_database_without_tables_there_are_no_keys(tmp_path):
    file = tmp_path / "a strange name?.sqlite"
    file.touch()
    assert await (await read_keys(f"sqlite:///{tmp_path}/a strange name?.sqlite")).all() == []
    assert file.stat().st_size == 0


async def test_memory_keeps_none():
    assert await (await open_keys("memory:")).all() == []
    with pytest.raises(StoreError, match="SUPERDIFF_DATABASE"):
        await open_keys("memory:", make=True)


@pytest.mark.parametrize("url", ["mysql://a/b", "sqlite://", "sqlite:///", "jobs.sqlite"])
async def test_what_is_no_database_of_ours(url):
    with pytest.raises(StoreError, match="SUPERDIFF_DATABASE must be"):
        await open_keys(url)
