"""Workers in processes of their own: what the way through the store costs, and what a second worker brings.

One thread for each process that computes. The same requests, AND of two prompts, go to a service that computes in its
own process, and to services whose workers, one and two, take them from a PostgreSQL server that is started for this in
a temporary folder. Beside them the bare network computes as many rows at once in one process and in two: what a second
process can bring on this machine at all.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory

import httpx

from benchmarks.harness import arguments, medians, report, table
from benchmarks.watching import watched

WAYS: Mapping[str, tuple[str, ...]] = {
    "embedded": (),
    "1 worker": ("--workers", "1"),
    "2 workers": ("--workers", "2"),
}
BODY = {"components": [{"prompt": text, "model": "shapes"} for text in ("a red circle", "a blue star")]}
CLIENTS, EACH = 16, 8
ALONE = 20
READY_S, ANSWER_S, LOADED_S = 180.0, 300.0, 30.0
# Rows that are in the network at once where all clients' requests are, and for how long it is measured.
ROWS, RAW_S = 3 * CLIENTS, 10.0


@contextmanager
def service(port: int, database: str, folder: str, *options: str) -> Iterator[tuple[httpx.Client, int]]:
    """A client of a running service, its workers ready, and the id of the API's process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SUPERDIFF_STATE": folder, "SUPERDIFF_DATABASE": database}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S) as client:
            workers = int(options[1]) if options else 1
            end = time.monotonic() + READY_S
            while not _ready(client, workers):
                if time.monotonic() > end:
                    raise RuntimeError(f"serve {' '.join(options)} is not ready")
                time.sleep(0.1)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def _ready(client: httpx.Client, workers: int) -> bool:
    with suppress(httpx.TransportError):
        told = client.get("/v1/workers").json()["workers"]
        return bool(sum(worker["state"] == "ready" for worker in told) >= workers)
    return False


def one_by_one(client: httpx.Client, steps: int) -> float:
    """Median seconds of a request alone."""
    took = []
    for seed in range(ALONE):
        began = time.perf_counter()
        client.post("/v1/superpose/and", json=BODY | {"steps": steps, "seed": seed}).raise_for_status()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def crowd(client: httpx.Client) -> float:
    """Pictures a second of several clients at once."""

    def press(number: int) -> None:
        with httpx.Client(base_url=client.base_url, timeout=ANSWER_S) as own:
            for seed in range(EACH):
                body = BODY | {"steps": 25, "seed": 1000 * number + seed}
                own.post("/v1/superpose/and", json=body).raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(press, range(CLIENTS)))
    return CLIENTS * EACH / (time.perf_counter() - began)


def health_in_a_crowd(client: httpx.Client, pid: int) -> float:
    """The 99th of a hundred waits for /healthz while several clients ask, in seconds.

    Measured beside a crowd of its own: the looks take processors that the workers would use.
    """
    with watched(str(client.base_url), pid) as seen:
        crowd(client)
    return seen.slowest(99)


def forwards(rows: int, start: float, seconds: float) -> float:
    """Rows a second of the bare network, in forwards of so many, from ``start`` on; this process has one thread."""
    import torch

    from benchmarks.engine import raw
    from pipelines.catalog import Catalog

    torch.set_num_threads(1)
    model = Catalog.builtin().get("shapes")
    raw(model, rows, rows)
    if time.time() > start:
        raise RuntimeError("a process began too late to be measured beside the other")
    time.sleep(start - time.time())
    done, took, end = 0, 0.0, start + seconds
    while time.time() < end:
        took += raw(model, 4 * rows, rows)
        done += 4 * rows
    return done / took


def bare(processes: int) -> float:
    """Rows a second of the bare network in so many processes, which share the rows of all clients."""
    start = time.time() + LOADED_S
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(forwards, ROWS // processes, start, RAW_S) for _ in range(processes)]
        return sum(share.result() for share in shares)


def main() -> None:
    """Measure, print, write."""
    given = arguments("workers", __doc__)
    from tests.postgres import server

    seen: dict[str, dict[str, list[float]]] = {name: {} for name in WAYS}
    with TemporaryDirectory() as folder, server() as postgres:
        for repeat in range(given.repeats):
            for place, (name, options) in enumerate(WAYS.items()):
                database = postgres.create(f"w{repeat}_{place}")
                with service(8970 + place, database, f"{folder}/{repeat}{place}", *options) as (client, pid):
                    one_by_one(client, 2)
                    numbers = {
                        "request of 5 steps alone, ms": 1e3 * one_by_one(client, 5),
                        "pictures a second, 16 clients": crowd(client),
                        "/healthz meanwhile, p99, ms": 1e3 * health_in_a_crowd(client, pid),
                    }
                numbers["rows a second of the bare network"] = bare(int(options[1]) if options else 1)
                for what, value in numbers.items():
                    seen[name].setdefault(what, []).append(value)
    numbers_of = {name: medians(values) for name, values in seen.items()}
    rows = [[what, *(f"{numbers_of[name][what]:.3g}" for name in WAYS)] for what in numbers_of["embedded"]]
    text = table(["", *WAYS], rows)
    pictures = "pictures a second, 16 clients"
    gain = numbers_of["2 workers"][pictures] / numbers_of["1 worker"][pictures]
    rows_a_second = "rows a second of the bare network"
    limit = numbers_of["2 workers"][rows_a_second] / numbers_of["1 worker"][rows_a_second]
    text += (
        f"\n\nTwo workers draw {gain:.2f} times as many pictures a second as one. Two processes that do nothing but "
        f"forwards compute {limit:.2f} times as many rows a second as one: the workers reach {gain / limit:.2f} of it."
    )
    report(f"Workers, medians of {given.repeats}", text, numbers_of, given.out)


if __name__ == "__main__":
    main()
