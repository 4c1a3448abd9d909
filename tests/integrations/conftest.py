import os

import pytest


@pytest.fixture(scope="session")
def service(server):
    """A live service with the models of shapes."""
    return server


@pytest.fixture(scope="session")
def needed():
    """Called with why a program is missing: fails where SUPERDIFF_REQUIRE_EDITOR=1, else skips and says so."""

    def missing(reason):
        if os.environ.get("SUPERDIFF_REQUIRE_EDITOR") == "1":
            pytest.fail(reason)
        pytest.skip(reason)

    return missing
