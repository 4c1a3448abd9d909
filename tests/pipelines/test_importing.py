import gc
import subprocess
import sys

import pytest

from pipelines.importing import collector_paused


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_rests_and_is_as_it_was_afterwards(was_on):
    kept = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with collector_paused():
            assert not gc.isenabled()
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if kept else gc.disable)()


def test_the_command_line_imports_no_large_library_before_a_command_runs():
    """How OpenMP's threads wait is read when torch is imported: `superdiff serve` must come before that."""
    large = "{'torch', 'scipy', 'diffusers', 'transformers', 'matplotlib'}"
    code = f"import sys, service.cli; print(sorted({large} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
