"""What was freed is no longer resident.

Small pieces with one in a hundred kept between them: without more ado the heap holds what the others took.
"""

import gc
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.memory import give_back_memory
from pipelines.residency import MemoryPolicy, Place, Residency

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
PIECES, PIECE_BYTES = 20_000, 16_000
# A third of what is freed: pages that pieces share with kept ones stay, and so does what the tests free elsewhere.
AT_LEAST = PIECES * PIECE_BYTES // 3


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_freed_memory_goes_back_to_the_system():
    pieces = [bytearray(PIECE_BYTES) for _ in range(PIECES)]
    kept, pieces = pieces[::100], None
    gc.collect()
    before = resident()
    give_back_memory()
    assert resident() < before - AT_LEAST
    assert len(kept) == PIECES // 100


def test_an_unloaded_model_s_memory_goes_back_to_the_system():
    weights = [torch.ones(PIECE_BYTES // 4) for _ in range(PIECES)]
    kept = weights[::100]
    residency = Residency({"one": Place(torch.device("cpu"))}, MemoryPolicy(idle_s=0.0))
    residency.admit("one", SimpleNamespace(networks=[torch.nn.ParameterList(weights)]))
    del weights
    before = resident()
    assert residency.unload_idle() == ["one"]
    assert resident() < before - AT_LEAST
    assert len(kept) == PIECES // 100
