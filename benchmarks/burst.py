"""A burst of equal requests over HTTP against the same requests one after another: AND of two prompts, 25 steps,
guidance 4, a picture each.

Each ``STRETCH`` has a server of its own; they take turns. The first thing that a server gets is a burst, so that it is
seen too what becomes of equals before the server learned what steps take; first calls are in it. The limit is what raw
forwards gain by the rows of all requests at once.
"""

import asyncio
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from benchmarks.engine import raw
from benchmarks.harness import alone, arguments, report, table
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


@contextmanager
def served(stretch: float, port: int) -> Iterator[str]:
    """The URL of a server of its own."""
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
        yield url
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


async def measured(urls: dict[float, str], repeats: int) -> dict[float, dict[str, list[float]]]:
    """Seconds of the first burst, of later ones, and of the requests one after another, for each server."""
    seconds: dict[float, dict[str, list[float]]] = {s: {"first": [], "together": [], "in turn": []} for s in urls}
    ways = {"in turn": _in_turn, "together": _together}
    clients = {s: httpx.AsyncClient(base_url=url, timeout=300) for s, url in urls.items()}
    for repeat in range(repeats + 1):
        for s, client in clients.items():
            for name, way in ways.items() if repeat else [("first", _together)]:
                start = time.perf_counter()
                await way(client)
                seconds[s][name].append(time.perf_counter() - start)
    for client in clients.values():
        await client.aclose()
    return seconds


def limit() -> float:
    """How many times as fast raw forwards of all rows at once are as those of one request."""
    model = Catalog.builtin().get("shapes")
    gains = [
        raw(model, ROWS * COUNT * STEPS // 4, ROWS) / raw(model, ROWS * COUNT * STEPS, ROWS * COUNT) * 4
        for _ in range(3)
    ]
    return statistics.median(gains)


def main() -> None:
    """Measure, print, write."""
    given = arguments("burst", __doc__)
    with served(STRETCHES[0], PORT) as first, served(STRETCHES[1], PORT + 1) as second:
        seconds = asyncio.run(measured(dict(zip(STRETCHES, (first, second), strict=True)), given.repeats))
    numbers: dict[str, dict[str, float]] = {}
    for stretch, times in seconds.items():
        gains = [one / many for one, many in zip(times["in turn"], times["together"], strict=True)]
        in_turn = statistics.median(times["in turn"])
        numbers[f"stretch {stretch:g}"] = {
            "one after another, seconds": in_turn,
            "together, seconds": statistics.median(times["together"]),
            "times as fast": statistics.median(gains),
            "times as fast, least": min(gains),
            "times as fast, a server's first": in_turn / times["first"][0],
        }
    best = alone(limit)
    names = list(numbers)
    rows = [[key, *(f"{numbers[name][key]:.2f}" for name in names)] for key in numbers[names[0]]]
    text = f"{table(['', *names], rows)}\n\nraw forwards are {best:.2f} times as fast"
    report(f"A burst of {COUNT} equals, medians of {given.repeats}", text, {**numbers, "limit": best}, given.out)


if __name__ == "__main__":
    main()
