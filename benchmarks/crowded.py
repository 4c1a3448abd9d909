"""How OpenMP's settings bear a crowd: forwards beside busy processes, each setting in a process of its own.

torch's wheels carry GNU's OpenMP, whose threads spin at a barrier before they sleep. Where other processes want the
same cores, a thread spins on a core that the late thread of its own team waits for. The settings are read once, when
the library is loaded, so every way is a process; they are measured in turn, with and without two busy processes beside.
The network is twenty blocks of what a U-Net's resolution of 16×16 is made of: 3×3 convolution, group norm, SiLU.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from benchmarks.harness import arguments, medians, report, table

WAYS: Final[Mapping[str, Mapping[str, str]]] = {
    "as it comes": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
ROWS: Final = (3, 48)
BUSY: Final = (0, 2)
FORWARDS: Final[Mapping[int, int]] = {3: 3, 48: 1}
_OWN: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "KMP_BLOCKTIME")


def worker() -> None:
    """Answer each line "rows forwards" on stdin with the seconds of one forward."""
    import torch
    from torch import nn

    torch.set_grad_enabled(False)
    blocks = [nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(32, 128), nn.SiLU()) for _ in range(20)]
    network = nn.Sequential(*blocks)
    inputs = {rows: torch.randn(rows, 128, 16, 16) for rows in ROWS}
    print("ready", flush=True)
    for line in sys.stdin:
        rows, count = map(int, line.split())
        start = time.perf_counter()
        for _ in range(count):
            network(inputs[rows])
        print(json.dumps((time.perf_counter() - start) / count), flush=True)


def started(given: Mapping[str, str]) -> "subprocess.Popen[str]":
    """A worker with these settings and none of the caller's own."""
    environment = {name: value for name, value in os.environ.items() if name not in _OWN}
    return subprocess.Popen(
        [sys.executable, "-c", "from benchmarks.crowded import worker; worker()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, **given},
    )


def said(process: "subprocess.Popen[str]") -> str:
    """The worker's next line."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError("a worker ended")
    return line.strip()


def asked(process: "subprocess.Popen[str]", rows: int) -> float:
    """Seconds of one forward in a worker."""
    if process.stdin is None:
        raise RuntimeError("a worker without a pipe")
    process.stdin.write(f"{rows} {FORWARDS[rows]}\n")
    process.stdin.flush()
    return float(said(process))


def measured(workers: Mapping[str, "subprocess.Popen[str]"], rows: int, busy: int, repeats: int) -> dict[str, float]:
    """Median seconds of one forward by every way, beside busy processes."""
    crowd = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for repeat in range(repeats + 1):
            for name, ask in {name: partial(asked, process, rows) for name, process in workers.items()}.items():
                took = ask()
                if repeat:
                    seconds[name].append(took)
        return medians(seconds)
    finally:
        for process in crowd:
            process.kill()
            process.wait()


def main() -> None:
    """Measure, print, write."""
    given = arguments("crowded", __doc__)
    workers = {}
    try:
        for name, settings in WAYS.items():
            workers[name] = started(settings)
        for process in workers.values():
            said(process)
        numbers: dict[str, dict[str, float]] = {name: {} for name in WAYS}
        for busy in BUSY:
            for rows in ROWS:
                for name, seconds in measured(workers, rows, busy, given.repeats).items():
                    numbers[name][f"{rows} rows, {busy} busy"] = seconds
                    print(f"{rows} rows, {busy} busy, {name}: {1e3 * seconds:.0f} ms", flush=True)
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    first = numbers["as it comes"]
    lines = [
        [name, *(f"{1e3 * values[c]:.0f} ms ({values[c] / first[c]:.2f})" for c in first)]
        for name, values in numbers.items()
    ]
    report("Forwards beside busy processes, against as it comes", table(["", *first], lines), numbers, given.out)


if __name__ == "__main__":
    main()
