"""What HTTP adds to a request in process, and how quick /healthz stays while the engine is saturated."""

import os
import statistics
import subprocess
import sys
import threading
import time

import httpx

from benchmarks.engine import planned
from benchmarks.harness import alone, arguments, report, table
from benchmarks.startup import PORT, URL, ready
from pipelines.catalog import Catalog
from pipelines.composition import And, Prompt
from pipelines.params import SamplingParams
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.pictures import encode_picture

STEPS = 5
REQUESTS = 40
BODY = {"components": ["a red circle", "a blue star"], "steps": STEPS, "seed": 1}


def in_process() -> list[float]:
    """Seconds of each request to an engine in this process, the picture encoded as the service does."""
    expression = And((Prompt("a red circle", "shapes"), Prompt("a blue star", "shapes")))
    params = SamplingParams(steps=STEPS, seed=1)
    times = []
    catalog = Catalog.builtin()
    alone(lambda: catalog.get("shapes"))
    with Engine(Executor(catalog)) as engine:
        for _ in range(REQUESTS + 3):
            start = time.perf_counter()
            outcome = engine.submit(planned(catalog, expression, params)).result.result()
            encode_picture(outcome.pictures[0], "png")
            times.append(time.perf_counter() - start)
    return times[3:]


def over_http(client: httpx.Client) -> list[float]:
    """Seconds of each request over HTTP, one connection kept open."""
    times = []
    for _ in range(REQUESTS + 3):
        start = time.perf_counter()
        client.post("/v1/superpose/and", json=BODY).raise_for_status()
        times.append(time.perf_counter() - start)
    return times[3:]


def health_under_load(client: httpx.Client) -> list[float]:
    """Seconds of each /healthz while thirty requests keep the engine busy."""
    done = threading.Event()

    def press() -> None:
        with httpx.Client(base_url=URL, timeout=120) as own:
            while not done.is_set():
                own.post("/v1/superpose/and", json=BODY | {"steps": 20})

    workers = [threading.Thread(target=press) for _ in range(30)]
    for worker in workers:
        worker.start()
    time.sleep(2)
    times = []
    for _ in range(300):
        start = time.perf_counter()
        client.get("/healthz").raise_for_status()
        times.append(time.perf_counter() - start)
        time.sleep(0.02)
    done.set()
    for worker in workers:
        worker.join()
    return times


def main() -> None:
    """Measure, print, write."""
    given = arguments("http", __doc__)
    inside = in_process()
    server = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"SUPERDIFF_DATABASE": "memory:"},
    )
    try:
        deadline = time.monotonic() + 120
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError("the service did not start")
            time.sleep(0.1)
        with httpx.Client(base_url=URL, timeout=120) as client:
            outside = over_http(client)
            health = health_under_load(client)
    finally:
        server.terminate()
        server.wait(60)
    numbers = {
        "in_process_p50_ms": statistics.median(inside) * 1e3,
        "http_p50_ms": statistics.median(outside) * 1e3,
        "http_adds_p50_ms": (statistics.median(outside) - statistics.median(inside)) * 1e3,
        "healthz_p50_ms": statistics.median(health) * 1e3,
        "healthz_p99_ms": statistics.quantiles(health, n=100)[98] * 1e3,
    }
    rows = [[key, f"{value:.1f}"] for key, value in numbers.items()]
    report("HTTP against in process; /healthz under load", table(["", "ms"], rows), numbers, given.out)


if __name__ == "__main__":
    main()
