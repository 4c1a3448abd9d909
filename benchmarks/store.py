"""The store of jobs: how many jobs a second are accepted, claimed and ended, how many leases heartbeats renew, and of
how many jobs the progress is told.

The work itself is left out: workers claim up to four jobs at once, start and end them; and they only claim, one job
and four at a claim, as workers on fake devices would. On SQLite and on a PostgreSQL server that is started for this in
a temporary folder, with its default settings: what is told as done is on the disk. What a claim costs in time on a
processor is told for both sides: it is what limits claims where processors are few.
"""

import asyncio
import functools
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

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
# Claims that each process makes before it is measured: statements are prepared by them.
FIRST = 8
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


async def claiming(store: Store, share: int, processes: int, start: float, *, jobs: int) -> list[float]:
    """Seconds of each claim of so many jobs, until nothing is left."""
    took: list[float] = []
    while True:
        began = time.perf_counter()
        # As a worker beside others asks: for models that it has, of those that it can load.
        wants = Wants(jobs=jobs, models=frozenset({"shapes"}), warm=frozenset({"shapes"}))
        if not await store.claim(f"worker {share}", wants, time.time()):
            return took
        took.append(time.perf_counter() - began)


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


@dataclass(frozen=True, slots=True)
class Share:
    """What one process did.

    Attributes:
        began: When it did, in Unix time.
        ended: Likewise.
        processor_s: Seconds that it was on a processor.
        took: Seconds of each call.
    """

    began: float
    ended: float
    processor_s: float
    took: list[float]


@dataclass(frozen=True, slots=True)
class Together:
    """What all did.

    Attributes:
        seconds: From the first beginning to the last end.
        clients_s: Seconds that they were on a processor.
        server_s: The same of the database's processes; 0 where it has none.
        took: Seconds of each call.
    """

    seconds: float
    clients_s: float
    server_s: float
    took: list[float]


def process(doing: Doing, url: str, share: int, processes: int, start: float, first: int) -> Share:
    """What one process does from ``start`` on, after so many claims that are not counted."""

    async def main() -> Share:
        store = await open_store(url)
        await store.backlog("")  # a connection is there
        for _ in range(first):
            await store.claim("first", Wants(), time.time())
        while time.time() < start:
            await asyncio.sleep(0.005)
        began, on_processor = time.time(), time.process_time()
        took = await doing(store, share, processes, start)
        done = Share(began, time.time(), time.process_time() - on_processor, took)
        await store.close()
        return done

    return asyncio.run(main())


def together(
    pool: ProcessPoolExecutor,
    doing: Doing,
    url: str,
    processes: int,
    server: psutil.Process | None = None,
    first: int = 0,
) -> Together:
    """What processes do at the same time."""
    # Time for all to be there; who comes late only makes the first beginning the earlier.
    start = time.time() + 1.0 + processes / 4
    shares = [pool.submit(process, doing, url, share, processes, start, first) for share in range(processes)]
    time.sleep(max(0.0, start - time.time()))
    before = served_s(server)
    done = [share.result() for share in shares]
    return Together(
        max(each.ended for each in done) - min(each.began for each in done),
        sum(each.processor_s for each in done),
        served_s(server) - before,
        [took for each in done for took in each.took],
    )


def served_s(server: psutil.Process | None) -> float:
    """Seconds that a database's processes were on a processor so far, those too that have ended."""
    if server is None:
        return 0.0
    own = server.cpu_times()
    ended_s = float(own.children_user + own.children_system)
    return ended_s + sum(float(each.user + each.system) for each in (own, *(c.cpu_times() for c in server.children())))


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


def measure(url: Callable[[], str], processes: int, server: psutil.Process | None) -> dict[str, float]:
    """Everything, on new databases."""
    numbers: dict[str, float] = {}
    database = made(url)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        done = together(pool, accepting, database, processes)
        numbers["jobs accepted a second"] = JOBS / done.seconds
        # Leases that are held have no part in what follows.
        done = together(pool, beating, database, processes)
        numbers["leases renewed a second"] = len(done.took) * HELD / done.seconds
        numbers["heartbeat of 16 leases, ms"] = statistics.median(done.took) * 1e3
        done = together(pool, telling, database, processes)
        numbers["jobs whose progress is told a second"] = len(done.took) * HELD / done.seconds
        done = together(pool, working, database, processes)
        numbers["jobs claimed, started and ended a second"] = (JOBS - 2 * HELD * processes) / done.seconds
        numbers["claim of 4 jobs, ms"] = statistics.median(done.took) * 1e3
        for jobs in (1, AT_ONCE):
            database = made(url)
            together(pool, accepting, database, processes)
            alone = functools.partial(claiming, jobs=jobs)
            done = together(pool, alone, database, processes, server, FIRST)
            claimed = JOBS - FIRST * processes
            numbers[f"jobs claimed a second, {jobs} a claim"] = claimed / done.seconds
            numbers[f"— processor time a job, claimants, {jobs} a claim, ms"] = 1e3 * done.clients_s / claimed
            numbers[f"— processor time a job, server, {jobs} a claim, ms"] = 1e3 * done.server_s / claimed
    return numbers


def made(url: Callable[[], str]) -> str:
    """The address of a new database with tables."""
    address = url()
    asyncio.run(_made(address))
    return address


async def _made(url: str) -> None:
    await (await open_store(url)).close()


Kinds = dict[str, tuple[Callable[[], str], psutil.Process | None]]


@contextmanager
def servers(folder: Path) -> Iterator[Kinds]:
    """A way to a new database of each kind, and the process that serves it."""
    from tests.postgres import server

    with server() as postgres:
        counter = iter(range(1000))
        serving = psutil.Process(int((postgres.folder / "data/postmaster.pid").read_text().splitlines()[0]))
        yield {
            "SQLite": (lambda: f"sqlite:///{folder}/{next(counter)}.db", None),
            "PostgreSQL": (lambda: str(postgres.create(f"bench_{next(counter)}")), serving),
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
                url, serving = kinds[kind]
                for what, value in measure(url, processes, serving).items():
                    seen.setdefault(name, {}).setdefault(what, []).append(value)
        backlog = {kind: asyncio.run(claims_before(url(), BACKLOG)) for kind, (url, _) in kinds.items()}
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
