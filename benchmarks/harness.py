"""What all benchmarks share: timing side by side in one run, a table for people, JSON for machines."""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, its repeats taken in turn so that whatever else the machine does falls on all alike.

    Every way runs once beforehand, untimed; and each time in a thread of its own, so that no idle OpenMP team of one
    way slows the others down (``service.services.Services.load`` tells how).
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            took = alone(partial(_timed, way))
            if repeat:
                seconds[name].append(took)
    return seconds


def alone(way: Callable[[], T]) -> T:
    """What a way returns, run in a thread that ends with it, and its OpenMP team with it.

    What is made ready for :func:`interleaved` belongs in here too: the main thread's team would live on.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(way).result()


def _timed(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each way."""
    return {name: statistics.median(series) for name, series in seconds.items()}


def machine() -> dict[str, Any]:
    """What a reader must know to compare: processor or accelerator, threads, versions, commit."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def arguments(name: str, description: str | None) -> argparse.Namespace:
    """The command line of every benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--out", type=Path, default=Path(f"runs/{name}.json"), help="where the JSON goes")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats of each way")
    return parser.parse_args()


def report(title: str, text: str, numbers: object, out: Path) -> None:
    """Print the table and write the JSON."""
    about = machine()
    print(f"{title}\n{', '.join(f'{key} {value}' for key, value in about.items())}\n\n{text}\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"title": title, "machine": about, "numbers": numbers}, indent=1) + "\n")
