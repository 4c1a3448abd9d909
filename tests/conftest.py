"""What holds for every test."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _apart_from_the_developer(tmp_path_factory):
    """What outlives a process goes to a folder of the tests: a developer's own keys would close their services."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERDIFF_STATE", str(tmp_path_factory.mktemp("state")))
        yield
