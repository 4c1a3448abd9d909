import os

import pytest

from tests.clients.conftest import start


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """A live service with the models of shapes."""
    running = start(tmp_path_factory.mktemp("service") / "log")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def needed():
    """Called with why a program is missing: fails where SUPERDIFF_REQUIRE_EDITOR=1, else skips and says so."""

    def missing(reason):
        if os.environ.get("SUPERDIFF_REQUIRE_EDITOR") == "1":
            pytest.fail(reason)
        pytest.skip(reason)

    return missing
