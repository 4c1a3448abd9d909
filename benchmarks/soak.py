"""Mixed traffic against a real server for a while: does anything grow that should not?

    python -m benchmarks.soak --minutes 20

Clients ask at random for compositions of every kind, as JSON, as pictures, as events and asynchronously; some cancel,
some hang up in the middle, some send what is refused. Every few seconds the server's resident memory, threads, open
files and sockets are read, and after the traffic what it holds at rest: what is more than before was left behind.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from benchmarks.harness import report, table

Way = Callable[[httpx.Client, dict[str, Any]], int]
"""One request of a client, from its body to the status that it ended with."""

CLIENTS: Final = 6
SAMPLE_EVERY_S: Final = 2.0
# Batch sizes, and so kernels and buffers, are seen for the first time in this share of the run.
WARM: Final = 0.25
SETTLE_S: Final = 15.0
PORT: Final = 8958
URL: Final = f"http://127.0.0.1:{PORT}"
EXPRESSIONS: Final = (
    '"a red circle" AND "a blue star"',
    '"a red circle" OR "a green square"@shapes-sharp',
    '"a cat"@emoji AND ("a pizza"@emoji OR "a dog"@emoji)',
    '"a cat"@emoji<lora:noto:1> AND "a pizza"@emoji',
    'AVERAGE("a red circle", "a blue star":2)',
)
SUPERPOSE: Final = "/v1/superpose"
ASYNC: Final = {"Prefer": "respond-async"}
EVENTS: Final = {"Accept": "text/event-stream"}
PICTURE: Final = {"Accept": "image/png"}


def body(rng: random.Random) -> dict[str, Any]:
    """A random small composition over the models of shapes, and of emoji."""
    return {
        "expression": rng.choice(EXPRESSIONS)
        .replace('"a red circle"', '"a red circle"@shapes')
        .replace('"a blue star"', '"a blue star"@shapes'),
        "steps": rng.randint(2, 8),
        "num_images": rng.choice((1, 1, 2)),
        "candidates": rng.choice((1, 1, 2)),
        "include_trajectory": rng.random() < 0.2,
    }


def posted(headers: Mapping[str, str], **changed: Any) -> Way:
    """A request that is answered at once."""

    def ask(client: httpx.Client, asked: dict[str, Any]) -> int:
        return client.post(SUPERPOSE, json=asked | changed, headers=dict(headers)).status_code

    return ask


def listened(client: httpx.Client, asked: dict[str, Any]) -> int:
    """A request whose events are read to the last."""
    with client.stream("POST", SUPERPOSE, json=asked, headers=EVENTS) as stream:
        for _ in stream.iter_bytes():
            pass
        return stream.status_code


def hung_up(client: httpx.Client, asked: dict[str, Any]) -> int:
    """A long request whose client leaves after the first event."""
    with client.stream("POST", SUPERPOSE, json=asked | {"steps": 100}, headers=EVENTS) as stream:
        next(stream.iter_bytes(), b"")
        return stream.status_code


def polled(client: httpx.Client, asked: dict[str, Any]) -> int:
    """An asynchronous request that is asked for until it is over; its picture is fetched."""
    taken = client.post(SUPERPOSE, json=asked, headers=ASYNC)
    if taken.is_error:
        return taken.status_code
    path = f"/v1/jobs/{taken.json()['id']}"
    while (job := client.get(path).json())["status"] not in {"completed", "failed", "cancelled"}:
        time.sleep(0.2)
    return client.get(f"{path}/images/0").status_code if job["status"] == "completed" else 0


def cancelled(client: httpx.Client, asked: dict[str, Any]) -> int:
    """An asynchronous request that is cancelled at once."""
    taken = client.post(SUPERPOSE, json=asked | {"steps": 100}, headers=ASYNC)
    return taken.status_code if taken.is_error else client.delete(f"/v1/jobs/{taken.json()['id']}").status_code


WAYS: Final[Mapping[str, Way]] = {
    "json": posted({}),
    "picture": posted(PICTURE, num_images=1),
    "late": posted({}, steps=200, timeout_s=0.5),
    "refused": posted({}, steps=0),
    "events": listened,
    "hang up": hung_up,
    "polled": polled,
    "cancelled": cancelled,
}


def press(seed: int, until: float, ended: Counter[str]) -> None:
    """One client, asking until the time is over."""
    rng = random.Random(seed)
    with httpx.Client(base_url=URL, timeout=120) as client:
        while time.monotonic() < until:
            name = rng.choice(list(WAYS))
            try:
                ended[f"{name}: {WAYS[name](client, body(rng))}"] += 1
            except httpx.HTTPError as error:
                ended[f"{name}: {type(error).__name__}"] += 1


def state(server: psutil.Process) -> dict[str, float]:
    """What the server holds now."""
    with server.oneshot():
        return {
            "resident_mb": server.memory_info().rss / 2**20,
            "threads": server.num_threads(),
            "files": len(server.open_files()),
            "sockets": len(server.net_connections()),
        }


def jobs_left() -> dict[str, float]:
    """The gauges of jobs that wait and run."""
    told = httpx.get(f"{URL}/metrics", timeout=30).text
    lines = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    return {name: float(lines[f"superdiff_{name}"]) for name in ("waiting_jobs", "running_jobs", "running_rows")}


def slope(series: list[tuple[float, float]]) -> float:
    """MB an hour, by least squares."""
    return 3600 * statistics.linear_regression([at for at, _ in series], [mb for _, mb in series]).slope


def soak(server: psutil.Process, seconds: float) -> dict[str, Any]:
    """The traffic, and what it left."""
    before = state(server)
    began = time.monotonic()
    ended: Counter[str] = Counter()
    clients = [threading.Thread(target=press, args=(seed, began + seconds, ended)) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    series, highest = [], dict(before)
    while any(client.is_alive() for client in clients):
        now = state(server)
        series.append((time.monotonic() - began, now["resident_mb"]))
        highest = {name: max(value, now[name]) for name, value in highest.items()}
        time.sleep(SAMPLE_EVERY_S)
    for client in clients:
        client.join()
    time.sleep(SETTLE_S)
    warm = [each for each in series if each[0] > WARM * seconds]
    quarter = max(1, len(warm) // 4)
    first, last = (statistics.median(mb for _, mb in part) for part in (warm[:quarter], warm[-quarter:]))
    return {
        "before": before,
        "highest": highest,
        "after": state(server) | jobs_left(),
        "resident_first_quarter_mb": first,
        "resident_last_quarter_mb": last,
        "growth_percent": 100 * (last / first - 1),
        "growth_mb_an_hour": slope(warm),
        "requests": sum(ended.values()),
        "ended": dict(sorted(ended.items())),
    }


def main() -> None:
    """Start a server, press it, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long the traffic lasts")
    parser.add_argument("--out", type=Path, default=Path("runs/soak.json"), help="where the JSON goes")
    given = parser.parse_args()
    log = Path("runs/soak.log")
    log.parent.mkdir(exist_ok=True)
    # Jobs are forgotten soon, or what is kept of them on purpose would be taken for growth.
    environment = {**os.environ, "SUPERDIFF_KEEP_S": "20", "SUPERDIFF_CATALOG": "superdiff.toml"}
    with log.open("w") as lines:
        server = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--port", str(PORT), "--log-format", "json"],
            stdout=lines,
            stderr=lines,
            env=environment,
        )
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{URL}/readyz", timeout=5).status_code == 200:
                    break
            time.sleep(0.3)
        numbers = soak(psutil.Process(server.pid), 60 * given.minutes)
    finally:
        server.terminate()
        status = server.wait(60)
    wrong = [line for line in map(json.loads, log.read_text().splitlines()) if line["level"] in {"error", "critical"}]
    numbers |= {"exit_status": status, "errors_logged": len(wrong), "first_errors": wrong[:5]}
    names = list(numbers["before"])
    rows = [[name, *(f"{numbers[when][name]:.0f}" for when in ("before", "highest", "after"))] for name in names]
    text = table(["", "before", "highest", "after, at rest"], rows)
    grown = f"{numbers['growth_percent']:+.1f} %, {numbers['growth_mb_an_hour']:+.0f} MB an hour"
    left = ", ".join(
        f"{name} {numbers['after'][name]:.0f}" for name in ("waiting_jobs", "running_jobs", "running_rows")
    )
    text += (
        f"\n\n{numbers['requests']} requests; resident memory after the warm-up {grown}; {left}; {len(wrong)} errors\n"
    )
    text += "\n".join(f"{count:6d}  {how}" for how, count in numbers["ended"].items())
    report(f"{given.minutes:g} minutes of mixed traffic", text, numbers, given.out)


if __name__ == "__main__":
    main()
