"""What callers have used of their day: in memory and in databases alike."""

import asyncio

import pytest
import sqlalchemy as sa

from service.store.opening import open_stores
from service.store.port import Spent
from service.store.schema import USAGE
from service.store.usage import DAY_S

pytestmark = pytest.mark.anyio
NOW = 1_000_000.0


@pytest.fixture
async def usage(store_url):
    """Nothing is used."""
    stores = await open_stores(store_url)
    if store_url != "memory:":
        async with stores.usage._database.write() as connection:
            await connection.execute(sa.delete(USAGE))
    yield stores.usage
    await stores.close()


async def test_a_day_begins_with_the_first_use_and_ends(usage):
    assert await usage.spent("ann", NOW) == Spent(0, NOW)
    assert await usage.spend("ann", 6, 10, NOW) == Spent(6, NOW)
    assert await usage.spend("ann", 4, 10, NOW + 5) == Spent(10, NOW)
    assert await usage.spend("ann", 1, 10, NOW + DAY_S - 1) is None
    assert await usage.spent("ann", NOW + DAY_S - 1) == Spent(10, NOW)
    assert await usage.spent("ann", NOW + DAY_S) == Spent(0, NOW + DAY_S)
    assert await usage.spend("ann", 10, 10, NOW + DAY_S) == Spent(10, NOW + DAY_S)


async def test_callers_are_counted_apart(usage):
    assert await usage.spend("ann", 10, 10, NOW) == Spent(10, NOW)
    assert await usage.spend("bob", 10, 10, NOW) == Spent(10, NOW)


async def test_what_was_not_done_is_given_back_of_its_own_day_alone(usage):
    await usage.spend("ann", 6, 10, NOW)
    await usage.give_back("ann", 4, NOW)
    assert await usage.spent("ann", NOW) == Spent(2, NOW)
    await usage.give_back("ann", 2, NOW - DAY_S)
    await usage.give_back("bob", 2, NOW)
    assert await usage.spent("ann", NOW) == Spent(2, NOW)


async def test_a_quota_that_was_lowered_allows_no_more(usage):
    await usage.spend("ann", 60, 100, NOW)
    assert await usage.spend("ann", 1, 10, NOW) is None


async def test_quotas_and_amounts_of_any_size(usage):
    assert await usage.spend("ann", 1 << 62, 10**30, NOW) == Spent(1 << 62, NOW)
    assert await usage.spend("ann", 11, 10, NOW) is None
    assert await usage.spend("bob", 11, 10, NOW) is None


async def test_at_once_no_more_is_used_than_there_is(usage):
    spent = await asyncio.gather(*(usage.spend("ann", 3, 10, NOW) for _ in range(8)))
    assert sorted(each.used for each in spent if each is not None) == [3, 6, 9]
    assert await usage.spent("ann", NOW) == Spent(9, NOW)


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
async def test_processes_on_one_database_count_together_and_a_restart_forgets_nothing(store_url, usage):
    await usage.spend("ann", 6, 10, NOW)
    other = await open_stores(store_url)
    assert await other.usage.spend("ann", 6, 10, NOW) is None
    assert await other.usage.spend("ann", 4, 10, NOW) == Spent(10, NOW)
    assert await usage.spent("ann", NOW) == Spent(10, NOW)
    await other.close()
