"""For all tests: no service that they start, in this process or another, keeps anything in the user's own folders."""

import gc
import os

import pytest

from tests.servers import start

os.environ["SUPERDIFF_DATABASE"] = "memory:"
# What the test files import stays; the collector's looking through it again and again takes a fifth of the time.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _apart_from_the_developer(tmp_path_factory):
    """What outlives a process goes to a folder of the tests: a developer's own keys would close their services."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERDIFF_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The service with the models of shapes, one process for all tests of a worker; a caller may have 16 jobs."""
    running = start(tmp_path_factory.mktemp("server") / "log", SUPERDIFF_CALLER_JOBS="16")
    yield running
    running.stop()
