"""The stores that must all behave alike."""

import pytest

from service.store.memory import MemoryStore


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=["memory"])
async def store(request):
    """An empty store of each kind."""
    return MemoryStore()
