"""Watching a server from a process of its own: /healthz, and the memory that it holds."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

import httpx
import psutil

EVERY_S: Final = 0.02
_ANSWER_S: Final = 60.0


@dataclass
class Seen:
    """What was seen of a server.

    Attributes:
        seconds: Of each answer of /healthz.
        resident_mb: The server's memory after each.
    """

    seconds: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)

    def slowest(self, percent: int) -> float:
        """Seconds that so many of a hundred answers did not take longer than."""
        return statistics.quantiles(self.seconds, n=100)[percent - 1]


@contextlib.contextmanager
def watched(url: str, pid: int) -> Iterator[Seen]:
    """Watch a server for a while; what was seen is there at the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    watcher = context.Process(target=_watch, args=(url, pid, there))
    watcher.start()
    here.recv()
    seen = Seen()
    try:
        yield seen
    finally:
        here.send(None)
        seen.seconds, seen.resident_mb = here.recv()
        watcher.join(60)


def _watch(url: str, pid: int, pipe: Connection) -> None:
    """Look until something is received; sends None when it begins, and all that it saw at the end."""
    server, seconds, resident = psutil.Process(pid), [], []
    with httpx.Client(base_url=url, timeout=_ANSWER_S) as client:
        client.get("/healthz").raise_for_status()  # connects
        pipe.send(None)
        while not pipe.poll(EVERY_S):
            start = time.perf_counter()
            client.get("/healthz").raise_for_status()
            seconds.append(time.perf_counter() - start)
            resident.append(server.memory_info().rss / 2**20)
    pipe.send((seconds, resident))
