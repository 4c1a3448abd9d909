"""A service that is asked for more than it can do, by clients that obey and by some that mean no good.

    python -m benchmarks.overload

A real server with a short queue. Ten times as many clients as may wait ask at once, half of them asynchronously, each a
caller of its own; who is refused comes again after Retry-After. Meanwhile another process asks /healthz and reads the
server's resident memory. Then the same again beside each kind of hostile traffic.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from PIL import Image

from benchmarks.harness import arguments, report, table
from benchmarks.watching import Seen, watched

PORT: Final = 8959
URL: Final = f"http://127.0.0.1:{PORT}"
WAITING: Final = 8
CLIENTS: Final = 10 * WAITING
MOST_TRIES: Final = 12
WITHIN_S: Final = 240.0
"""A phase is given up then."""
AT_ONCE: Final = 6
BODY_BYTES: Final = 30_000_000
LORIS: Final = 200
SETTLE_S: Final = 4.0
JSON: Final = {"Content-Type": "application/json"}
ASYNC: Final = {"Prefer": "respond-async"}
BODY: Final = {"components": ["a red circle", "a blue star"], "steps": 3}
SERVER: Final = {
    "SUPERDIFF_WAITING_JOBS": str(WAITING),
    # Four of these jobs run at once.
    "SUPERDIFF_RUNNING_ROWS": "12",
    # So that each client may be a caller of its own.
    "SUPERDIFF_TRUSTED_PROXIES": "127.0.0.1",
    "SUPERDIFF_DATABASE": "memory:",
}


@dataclass
class Crowd:
    """How clients that obey fared.

    Attributes:
        statuses: Of all their answers.
        tries: How often each of those that got in had asked.
        accepted: Jobs that were taken in.
        finished: Those of them that were completed.
        gave_up: Clients that were refused at every try.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    tries: list[int] = field(default_factory=list)
    accepted: int = 0
    finished: int = 0
    gave_up: int = 0

    @property
    def second_try(self) -> float:
        """Of those who were refused once, the share that got in at their second try."""
        came_again = [tries for tries in self.tries if tries > 1]
        return sum(tries == 2 for tries in came_again) / max(1, len(came_again) + self.gave_up)


async def ask(client: httpx.AsyncClient, number: int, crowd: Crowd) -> None:
    """One client, until its picture is drawn."""
    asynchronous = number % 2 == 1
    headers = {"X-Forwarded-For": f"10.0.{number // 250}.{number % 250 + 1}", **(ASYNC if asynchronous else {})}
    for tries in range(1, MOST_TRIES + 1):
        answer = await client.post("/v1/superpose/and", json=BODY | {"seed": number}, headers=headers)
        crowd.statuses[str(answer.status_code)] += 1
        if answer.is_success:
            crowd.tries.append(tries)
            crowd.accepted += 1
            state = answer.json()["status"]
            while state not in {"completed", "failed", "cancelled"}:
                await asyncio.sleep(1)
                state = (await client.get(f"/v1/jobs/{answer.json()['id']}", headers=headers)).json()["status"]
            crowd.finished += state == "completed"
            return
        if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    crowd.gave_up += 1


async def press() -> Crowd:
    """All clients at once."""
    crowd = Crowd()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=URL, timeout=WITHIN_S, limits=limits) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHIN_S):
                await asyncio.gather(*(ask(client, number, crowd) for number in range(CLIENTS)))
    return crowd


def told_of(seen: Seen) -> dict[str, float]:
    """A phase's numbers of /healthz and of memory."""
    return {
        "healthz": len(seen.seconds),
        "healthz_p50_ms": 1e3 * seen.slowest(50),
        "healthz_p99_ms": 1e3 * seen.slowest(99),
        "healthz_max_ms": 1e3 * max(seen.seconds),
        "resident_highest_mb": max(seen.resident_mb),
    }


def sent(content: bytes, path: str = "/v1/superpose/and") -> str:
    """The status of a body that is sent as fast as the server takes it, or how the connection ended."""
    try:
        return str(httpx.post(f"{URL}{path}", content=content, headers=JSON, timeout=WITHIN_S).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


def at_once(content: Callable[[], bytes], times: int) -> Counter[str]:
    """How a few senders of a body ended, each so many times."""
    ended: Counter[str] = Counter()
    whole = content()
    threads = [threading.Thread(target=lambda: ended.update(sent(whole) for _ in range(times))) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def lists() -> bytes:
    """Ten million empty lists."""
    return b"[" + b"[]," * (BODY_BYTES // 3) + b"[]]"


def fields() -> bytes:
    """300,000 unknown fields."""
    return json.dumps({f"field{i}": i for i in range(300_000)}).encode()


@cache
def picture() -> bytes:
    """A request with a PNG of 24 megapixels: noise above, black below, some 30 MB of text."""
    pixels = np.zeros((4000, 6000, 3), np.uint8)
    pixels[:1240] = np.random.default_rng(0).integers(0, 256, (1240, 6000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    known = {"image": base64.b64encode(file.getvalue()).decode(), "width": 64, "height": 64, "priority": 9}
    return json.dumps(BODY | known).encode()


def dripping() -> Counter[str]:
    """Sockets whose headers, and bodies, come a byte a second: how many of them the server closed within 40 s."""
    head = f"POST /v1/superpose/and HTTP/1.1\r\nHost: 127.0.0.1\r\n{'X-Slow: '}".encode()
    body = (
        b"POST /v1/superpose/and HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    )
    held = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(LORIS)]
    for number, each in enumerate(held):
        each.sendall(head if number % 2 else body)
        each.setblocking(False)
    ended: Counter[str] = Counter()
    for _ in range(40):
        for each in list(held):
            with contextlib.suppress(BlockingIOError):
                try:
                    each.send(b"a")
                    told = each.recv(4096)
                except ConnectionError:
                    told = b""
                ended[told[9:12].decode() or "closed"] += 1
                held.remove(each)
                each.close()
        time.sleep(1)
    ended["left open"] += len(held)
    for each in held:
        each.close()
    return +ended


HOSTILE: Final[Mapping[str, Callable[[], Counter[str]]]] = {
    "nobody else": Counter,
    "30 MB of empty lists, six at once": partial(at_once, lists, 3),
    "300,000 unknown fields, six at once": partial(at_once, fields, 3),
    f"{LORIS} slow sockets": dripping,
    "a picture of 24 megapixels in 30 MB, six at once": partial(at_once, picture, 1),
}


def phase(pid: int, hostile: Callable[[], Counter[str]], idle_mb: float) -> dict[str, Any]:
    """The crowd, beside others."""
    ended: Counter[str] = Counter()
    beside = threading.Thread(target=lambda: ended.update(hostile()))
    with watched(URL, pid) as seen:
        start = time.monotonic()
        beside.start()
        crowd = asyncio.run(press())
        beside.join()
        seconds = time.monotonic() - start
    told = told_of(seen)
    return told | {
        "seconds": seconds,
        "statuses": dict(crowd.statuses),
        "second_try": crowd.second_try,
        "refused_once": sum(tries > 1 for tries in crowd.tries) + crowd.gave_up,
        "accepted": crowd.accepted,
        "finished": crowd.finished,
        "gave_up": crowd.gave_up,
        "hostile": dict(ended),
        "resident_ratio": told["resident_highest_mb"] / idle_mb,
    }


def wait_ready() -> None:
    """Wait until the server answers that it is ready."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{URL}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise RuntimeError("the service did not start")


def main() -> None:
    """Start a server, press it, print, write."""
    given = arguments("overload", __doc__)
    log = Path("runs/overload.log")
    log.parent.mkdir(exist_ok=True)
    picture()
    with log.open("w") as lines:
        server = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--port", str(PORT), "--log-format", "json"],
            stdout=lines,
            stderr=lines,
            env=os.environ | SERVER,
        )
    try:
        wait_ready()
        httpx.post(f"{URL}/v1/superpose/and", json=BODY, timeout=WITHIN_S).raise_for_status()
        time.sleep(SETTLE_S)
        with watched(URL, server.pid) as seen:
            time.sleep(SETTLE_S)
        quiet = told_of(seen)
        idle_mb = quiet["resident_highest_mb"]
        phases = {}
        for name, hostile in HOSTILE.items():
            phases[name] = phase(server.pid, hostile, idle_mb)
            print(name, json.dumps(phases[name]), file=sys.stderr, flush=True)
            time.sleep(SETTLE_S)
    finally:
        server.terminate()
        status = server.wait(90)
    wrong = [line for line in map(json.loads, log.read_text().splitlines()) if line["level"] in {"error", "critical"}]
    numbers = {"idle": quiet, "phases": phases, "exit_status": status, "errors_logged": len(wrong)}
    rows = [["at rest", "", "", "", *_watched(quiet), f"{idle_mb:.0f} MB", ""]]
    rows += [
        [
            name,
            _counts(each["statuses"]),
            f"{100 * each['second_try']:.0f} % of {each['refused_once']}",
            f"{each['finished']} of {each['accepted']}",
            *_watched(each),
            f"{each['resident_ratio']:.2f}",
            _counts(each["hostile"]),
        ]
        for name, each in phases.items()
    ]
    header = ["beside", "statuses", "in at the second try", "finished of accepted", "`/healthz` p50, ms", "p99, ms"]
    text = table([*header, "longest, ms", "memory ÷ at rest", "how those ended"], rows)
    text += f"\n\n{len(wrong)} errors in the log; exit status {status}"
    report(f"{CLIENTS} clients at a queue of {WAITING}", text, numbers, given.out)


def _watched(told: Mapping[str, float]) -> list[str]:
    return [f"{told[f'healthz_{name}_ms']:.1f}" for name in ("p50", "p99", "max")]


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counted.items()))


if __name__ == "__main__":
    main()
