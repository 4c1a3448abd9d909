"""A burst of equal requests over HTTP against the same requests one after another: AND of two prompts, 25 steps,
guidance 4, a picture each.

Each ``STRETCH`` has a server of its own; they take turns. The first thing that a server gets is a burst, so that it is
seen too what becomes of equals before the server learned what steps take; first calls are in it. The limit is what raw
forwards gain by the rows of all requests at once. Where other processes want the same cores, the server's processor
time says more than the clock: with one thread (``OMP_NUM_THREADS=1``) it is what the requests cost.
"""

import asyncio
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx
import psutil

from benchmarks.engine import raw
from benchmarks.harness import alone, arguments, medians, report, table
from benchmarks.sampler import GUIDANCE, PROMPTS, STEPS
from pipelines.catalog import Catalog

COUNT: Final = 16
STRETCHES: Final = (2.0, math.inf)
PORT: Final = 8961
ROWS: Final = 3
BODY: Final = {
    "components": [{"prompt": text, "model": "shapes"} for text in PROMPTS],
    "steps": STEPS,
    "guidance_scale": GUIDANCE,
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server of its own.

    Attributes:
        url: Where it answers.
        process: What to ask for its processor time.
    """

    url: str
    process: psutil.Process

    @property
    def processor_s(self) -> float:
        """Processor time that it has had, in seconds."""
        used = self.process.cpu_times()
        return float(used.user + used.system)


@contextmanager
def served(stretch: float, port: int) -> Iterator[Server]:
    """A server that is ready."""
    server = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"SUPERDIFF_DATABASE": "memory:", "SUPERDIFF_STRETCH": str(stretch)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _ready(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the service did not start")
            time.sleep(0.1)
        yield Server(url, psutil.Process(server.pid))
    finally:
        server.terminate()
        server.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


async def _ask(client: httpx.AsyncClient, seed: int) -> None:
    (await client.post("/v1/superpose/and", json=BODY | {"seed": seed})).raise_for_status()


async def _together(client: httpx.AsyncClient) -> None:
    await asyncio.gather(*(_ask(client, seed) for seed in range(COUNT)))


async def _in_turn(client: httpx.AsyncClient) -> None:
    for seed in range(COUNT):
        await _ask(client, seed)


Times = dict[str, list[tuple[float, float]]]
"""Way → seconds by the clock and of the server's processor, each time."""


async def measured(servers: Mapping[float, Server], repeats: int) -> dict[float, Times]:
    """What the first burst, later ones, and the requests one after another took each server."""
    times: dict[float, Times] = {stretch: {"first": [], "together": [], "in turn": []} for stretch in servers}
    ways = {"in turn": _in_turn, "together": _together}
    for repeat in range(repeats + 1):
        for stretch, server in servers.items():
            async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
                for name, way in ways.items() if repeat else [("first", _together)]:
                    start, used = time.perf_counter(), server.processor_s
                    await way(client)
                    times[stretch][name].append((time.perf_counter() - start, server.processor_s - used))
    return times


def numbers_of(times: Times) -> dict[str, float]:
    """What is told of one server."""
    seconds = {name: [clock for clock, _ in series] for name, series in times.items()}
    processor = {name: [used for _, used in series] for name, series in times.items()}
    gains = [one / many for one, many in zip(seconds["in turn"], seconds["together"], strict=True)]
    costs = [one / many for one, many in zip(processor["in turn"], processor["together"], strict=True)]
    middle = medians(seconds)
    return {
        "one after another, seconds": middle["in turn"],
        "together, seconds": middle["together"],
        "times as fast": statistics.median(gains),
        "times as fast, least": min(gains),
        "times as fast, a server's first": middle["in turn"] / middle["first"],
        "times the processor time": statistics.median(costs),
    }


def limit() -> float:
    """How many times as fast raw forwards of all rows at once are as those of one request."""
    model, rows = Catalog.builtin().get("shapes"), ROWS * COUNT
    return statistics.median(raw(model, 2 * rows, ROWS) / raw(model, 2 * rows, rows) for _ in range(3))


def main() -> None:
    """Measure, print, write."""
    given = arguments("burst", __doc__)
    with served(STRETCHES[0], PORT) as bounded, served(STRETCHES[1], PORT + 1) as free:
        times = asyncio.run(measured(dict(zip(STRETCHES, (bounded, free), strict=True)), given.repeats))
    numbers = {f"stretch {stretch:g}": numbers_of(each) for stretch, each in times.items()}
    best = alone(limit)
    names = list(numbers)
    rows = [[key, *(f"{numbers[name][key]:.2f}" for name in names)] for key in numbers[names[0]]]
    text = f"{table(['', *names], rows)}\n\nraw forwards: {best:.2f} times as fast"
    report(f"A burst of {COUNT} equals, medians of {given.repeats}", text, {**numbers, "limit": best}, given.out)


if __name__ == "__main__":
    main()
