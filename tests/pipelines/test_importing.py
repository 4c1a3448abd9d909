import gc
import subprocess
import sys

import pytest

from pipelines.importing import collector_paused, link_ahead


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


def test_what_large_libraries_leave_the_collector_never_looks_at():
    code = """
import gc
from pipelines.importing import collector_paused
def told(bringing):
    with collector_paused(bringing):
        pass
    print(gc.get_freeze_count() > 0, gc.isenabled())
told("")
told("gc")
gc.disable()
told("none_yet")
gc.enable()
told("none_yet")
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == ["False True", "False True", "False False", "True True"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="linked ahead on Linux alone")
def test_a_library_that_is_linked_ahead_is_the_one_that_is_imported():
    code = """
import sys
from pathlib import Path
from pipelines.importing import link_ahead
def linked():
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libtorch_cpu" in line}
assert not linked()
link_ahead("torch", "lib/libtorch_cpu.so").join()
(file,) = linked()
assert "torch" not in sys.modules
import torch
assert linked() == {file}
print(float(torch.ones(3, 3).matmul(torch.ones(3, 3)).sum()))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (told.stdout, told.stderr) == ("27.0\n", "")


def test_what_cannot_be_linked_ahead_is_left_to_its_import():
    assert link_ahead("no_such_package", "lib/libtorch_cpu.so") is None
    assert link_ahead("json", "lib/none.so") is None


def test_the_command_line_imports_no_large_library_before_a_command_runs():
    """How OpenMP's threads wait is read when torch is imported: `superdiff serve` must come before that."""
    large = "{'torch', 'scipy', 'diffusers', 'transformers', 'matplotlib'}"
    code = f"import sys, service.cli; print(sorted({large} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
