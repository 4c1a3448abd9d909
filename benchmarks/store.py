"""The store of jobs: how many jobs a second are accepted, claimed and ended, how many leases heartbeats renew, and of
how many jobs the progress is told.

The work itself is left out: workers claim up to four jobs at once, start and end them. On SQLite and on a PostgreSQL
server that is started for this in a temporary folder, with its default settings: what is told as done is on the disk.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.store.opening import open_store
from service.store.port import Store
from service.store.records import Ending, JobKind, JobRecord, JobState, Progress, Wants

JOBS = 640
CALLERS = 12
AT_ONCE = 4
HELD = 16
HEARTBEATS = 30
TOLD_BYTES = 2_000
BACKLOG = 1_000
WAYS = (("SQLite", 1), ("PostgreSQL", 1), ("PostgreSQL", 8))


def job(number: int, created: float) -> JobRecord:
    """A job of one of the callers."""
    return JobRecord(
        id=f"{created:.0f}-{number:08}",
        kind=JobKind.SUPERPOSITION,
        caller=f"caller {number % CALLERS}",
        request='{"expression": "\\"a cat\\" AND \\"a pizza\\""}' + " " * 500,
        seed=number,
        created=created + number * 1e-6,
        models=("shapes",),
        components=("a cat", "a pizza"),
        steps=25,
    )


async def accepting(store: Store, share: int, processes: int, start: float) -> list[float]:
    """Seconds of each call that accepts a job."""
    took = []
    for number in range(share, JOBS, processes):
        began = time.perf_counter()
        await store.add(job(number, start))
        took.append(time.perf_counter() - began)
    return took


async def working(store: Store, share: int, processes: int, start: float) -> list[float]:
    """Seconds of each claim, until nothing is left; claimed jobs are started and ended."""
    took = []
    while True:
        began = time.perf_counter()
        claims = await store.claim(f"worker {share}", Wants(jobs=AT_ONCE), time.time())
        took += [time.perf_counter() - began] if claims else []
        if not claims:
            return took
        for claim in claims:
            await store.start(claim.lease, time.time())
            await store.finish(claim.lease, Ending(JobState.COMPLETED, artifacts={"0.png": "a" * 64}), time.time())


async def beating(store: Store, share: int, processes: int, start: float) -> list[float]:
    """Seconds of each heartbeat."""
    leases = [claim.lease for claim in await store.claim(f"worker {share}", Wants(jobs=HELD), time.time())]
    took = []
    for beat in range(HEARTBEATS):
        began = time.perf_counter()
        renewal = await store.renew(leases, time.time(), {lease.job_id: beat for lease in leases})
        took.append(time.perf_counter() - began)
        if len(renewal.kept) != len(leases):
            raise RuntimeError("a lease was lost")
    return took


async def telling(store: Store, share: int, processes: int, start: float) -> list[float]:
    """Seconds of each call that tells of the progress of all held jobs, as those who watch from elsewhere hear it."""
    leases = [claim.lease for claim in await store.claim(f"worker {share}", Wants(jobs=HELD), time.time())]
    await store.watch([lease.job_id for lease in leases], time.time() + 600)
    took = []
    for number in range(1, HEARTBEATS + 1):
        told = [Progress(lease.job_id, lease.fence, number, bytes(TOLD_BYTES)) for lease in leases]
        began = time.perf_counter()
        await store.tell(told)
        took.append(time.perf_counter() - began)
    return took


Doing = Callable[[Store, int, int, float], Awaitable[list[float]]]


def process(doing: Doing, url: str, share: int, processes: int, start: float) -> tuple[float, float, list[float]]:
    """When a process began and ended, and what its calls took."""

    async def main() -> tuple[float, float, list[float]]:
        store = await open_store(url)
        await store.backlog("")  # a connection is there
        while time.time() < start:
            await asyncio.sleep(0.005)
        began = time.time()
        took = await doing(store, share, processes, start)
        ended = time.time()
        await store.close()
        return began, ended, took

    return asyncio.run(main())


def together(pool: ProcessPoolExecutor, doing: Doing, url: str, processes: int) -> tuple[float, list[float]]:
    """Seconds from the first beginning to the last end, and what each call took."""
    # Time for all to be there; who comes late only makes the first beginning the earlier.
    start = time.time() + 1.0 + processes / 4
    shares = [pool.submit(process, doing, url, share, processes, start) for share in range(processes)]
    done = [share.result() for share in shares]
    seconds = max(ended for _, ended, _ in done) - min(began for began, _, _ in done)
    return seconds, [each for _, _, took in done for each in took]


async def claims_before(url: str, waiting: int) -> float:
    """Milliseconds of a claim, the median of 30, while so many jobs wait."""
    store = await open_store(url)
    now = time.time()
    for first in range(0, waiting, 10):
        await asyncio.gather(*(store.add(job(number, now)) for number in range(first, min(first + 10, waiting))))
    took = []
    for _ in range(30):
        began = time.perf_counter()
        await store.claim("worker", Wants(jobs=AT_ONCE), now + 1)
        took.append(time.perf_counter() - began)
    await store.close()
    return statistics.median(took) * 1e3


def measure(url: Callable[[], str], processes: int) -> dict[str, float]:
    """Everything, on new databases."""
    numbers: dict[str, float] = {}
    database = url()
    asyncio.run(_made(database))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        seconds, took = together(pool, accepting, database, processes)
        numbers["jobs accepted a second"] = JOBS / seconds
        # Leases that are held have no part in what follows.
        seconds, took = together(pool, beating, database, processes)
        numbers["leases renewed a second"] = len(took) * HELD / seconds
        numbers["heartbeat of 16 leases, ms"] = statistics.median(took) * 1e3
        seconds, took = together(pool, telling, database, processes)
        numbers["jobs whose progress is told a second"] = len(took) * HELD / seconds
        seconds, took = together(pool, working, database, processes)
        numbers["jobs claimed, started and ended a second"] = (JOBS - 2 * HELD * processes) / seconds
        numbers["claim of 4 jobs, ms"] = statistics.median(took) * 1e3
    return numbers


async def _made(url: str) -> None:
    await (await open_store(url)).close()


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, Callable[[], str]]]:
    """A way to a new database of each kind."""
    from tests.postgres import server

    with server() as postgres:
        counter = iter(range(1000))
        yield {
            "SQLite": lambda: f"sqlite:///{folder}/{next(counter)}.db",
            "PostgreSQL": lambda: str(postgres.create(f"bench_{next(counter)}")),
        }


def main() -> None:
    """Measure, print, write."""
    from benchmarks.harness import arguments, medians, report, table

    given = arguments("store", __doc__)
    seen: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as folder, servers(Path(folder)) as kinds:
        for _ in range(given.repeats):
            for kind, processes in WAYS:
                name = f"{kind}, {processes} process{'es' if processes > 1 else ''}"
                for what, value in measure(kinds[kind], processes).items():
                    seen.setdefault(name, {}).setdefault(what, []).append(value)
        backlog = {kind: asyncio.run(claims_before(url(), BACKLOG)) for kind, url in kinds.items()}
    numbers: dict[str, Any] = {name: medians(values) for name, values in seen.items()}
    names = list(numbers)
    rows = [[what, *(f"{numbers[name][what]:.4g}" for name in names)] for what in numbers[names[0]]]
    text = table(["", *names], rows)
    waiting = ", ".join(f"{kind} {value:.1f} ms" for kind, value in backlog.items())
    text += f"\n\nA claim of {AT_ONCE} jobs of {BACKLOG} that wait, of {CALLERS} callers: {waiting}."
    numbers["claims before a backlog, ms"] = backlog
    report(f"The store of jobs, medians of {given.repeats}", text, numbers, given.out)


if __name__ == "__main__":
    main()
