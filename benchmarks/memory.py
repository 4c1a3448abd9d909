"""Resident memory of the engine at 64 running requests, and whether 512 more make it grow."""

import gc
import time
from concurrent.futures import wait
from functools import partial

import psutil

from benchmarks.engine import FORWARD_ROWS, LIMITS, planned, request
from benchmarks.harness import alone, arguments, report, table
from benchmarks.sampler import EXPRESSION
from pipelines.catalog import Catalog
from service.engine.engine import Engine
from service.engine.executor import Executor

AT_ONCE = 64
ROUNDS = 12
# The first rounds see batch sizes, and so kernels and buffers, for the first time.
WARM = 4
# An engine without work gives freed memory back after a second.
REST_S = 2.5


def resident() -> float:
    """Resident memory of this process in MB."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def main() -> None:
    """Measure, print, write."""
    given = arguments("memory", __doc__)
    catalog = Catalog.builtin()
    for name in catalog.names:
        alone(partial(catalog.get, name))
    plans = [planned(catalog, EXPRESSION, request(seed)) for seed in range(AT_ONCE)]
    numbers = {"models loaded": resident()}
    with Engine(Executor(catalog, forward_rows=FORWARD_ROWS), LIMITS) as engine:
        for done in range(1, ROUNDS + 1):
            wait([engine.submit(plan).result for plan in plans])
            time.sleep(REST_S)
            numbers[f"after {done * AT_ONCE} requests"] = resident()
    first, last = numbers[f"after {WARM * AT_ONCE} requests"], numbers[f"after {ROUNDS * AT_ONCE} requests"]
    numbers["growth, %"] = 100 * (last / first - 1)
    rows = [[key, f"{value:.1f}"] for key, value in numbers.items()]
    report(f"Memory, {AT_ONCE} requests at a time", table(["", "MB"], rows), numbers, given.out)


if __name__ == "__main__":
    main()
