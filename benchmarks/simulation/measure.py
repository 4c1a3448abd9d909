"""What steps and calls to the store take on this machine, for the simulation: by the real engine, the real store."""

import asyncio
import functools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil
import torch

from benchmarks.engine import planned
from benchmarks.harness import alone
from benchmarks.sampler import EXPRESSION, GUIDANCE
from benchmarks.simulation.costs import Call, Curve, Device, StoreCosts
from benchmarks.store import job
from pipelines.catalog import Catalog
from pipelines.params import SamplingParams
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.job import Job, Outcome
from service.engine.scheduler import Limits
from service.store.opening import open_store
from service.store.port import Store
from service.store.records import Ending, JobState, Lease, Wants

CROWDS: Final = (1, 2, 4, 8, 16, 32)
ROWS: Final = 96
_LIMITS: Final = Limits(running_rows=ROWS, caller_jobs=1000, stretch=float("inf"))
_FEW: Final = 20
_MANY: Final = 200
_HELD: Final = 16


class Timing(Executor):
    """An executor that notes what steps and decoding take.

    Attributes:
        steps: Rows → seconds of each step.
        decoded: Seconds a picture, of each decoding.
    """

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, forward_rows=ROWS)
        # One thread that computes by itself is timed by what it was on a processor: as if nobody else used the machine.
        self._now = time.thread_time if alone_on_cpu() else time.perf_counter
        self.steps: dict[int, list[float]] = {}
        self.decoded: list[float] = []

    def advance(self, jobs: Sequence[Job]) -> None:
        """Take a step."""
        began = self._now()
        super().advance(jobs)
        self.steps.setdefault(sum(job.rows for job in jobs), []).append(self._now() - began)

    def decode(self, jobs: Sequence[Job]) -> list[tuple[Job, Outcome | Exception]]:
        """Decode pictures."""
        began = self._now()
        ends = super().decode(jobs)
        self.decoded.append((self._now() - began) / sum(job.params.num_images for job in jobs))
        return ends


def alone_on_cpu() -> bool:
    """Whether steps are computed by the thread that asks for them and no other."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def device(steps: int) -> Device:
    """What the engine takes on the builtin model ``shapes``, medians over so many steps of each size."""
    catalog = Catalog.builtin()
    alone(functools.partial(catalog.get, "shapes"))
    load_s = alone(functools.partial(_loading, catalog))
    executor = Timing(catalog)
    with Engine(executor, _LIMITS) as engine:
        for crowd in (2, *CROWDS):  # what is done for the first time takes longer
            executor.steps.pop(3 * crowd, None)
            params = [SamplingParams(steps=steps, guidance_scale=GUIDANCE, seed=seed) for seed in range(crowd)]
            wait([engine.submit(planned(catalog, EXPRESSION, each)).result for each in params])
    sizes = [3 * crowd for crowd in CROWDS]
    points = [(rows, statistics.median(executor.steps[rows])) for rows in sizes]
    return Device(Curve(tuple(points)), statistics.median(executor.decoded), load_s, ROWS)


def _loading(catalog: Catalog) -> float:
    now = time.thread_time if alone_on_cpu() else time.perf_counter
    began = now()
    catalog.get("shapes-round")
    return now() - began


def _on_processor_s(process: psutil.Process) -> float:
    """Seconds that a process of one thread was on a processor; to the nanosecond where the kernel tells."""
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        times = process.cpu_times()
        return float(times.user + times.system)


class _Clock:
    """Seconds of a call, and seconds of processors that the database's own processes took for it."""

    def __init__(self, server: psutil.Process | None) -> None:
        self._server = server

    def _processors(self) -> float:
        return 0.0 if self._server is None else sum(map(_on_processor_s, (self._server, *self._server.children())))

    async def of(self, calls: Sequence[Callable[[], Awaitable[object]]]) -> Call:
        """The median call's seconds, and the mean's of the database."""
        took, before = [], self._processors()
        for call in calls:
            began = time.perf_counter()
            await call()
            took.append(time.perf_counter() - began)
        seconds = statistics.median(took)
        # A database in this process has one writer, and that is kept for the whole call.
        busy_s = (self._processors() - before) / len(calls) if self._server else seconds
        return Call(seconds, min(seconds, busy_s))


async def _store(url: str, server: psutil.Process | None, calls: int, cores: int) -> StoreCosts:
    store, clock = await open_store(url), _Clock(server)
    try:
        return await _measured(store, clock, calls, cores, await _notified(url) if server else 0.0)
    finally:
        await store.close()


async def _measured(store: Store, clock: _Clock, calls: int, cores: int, notify_s: float) -> StoreCosts:
    now, numbers = time.time(), iter(range(10**6))
    leases: list[Lease] = []

    def adding() -> Callable[[], Awaitable[object]]:
        return functools.partial(store.add, replace(job(next(numbers), now), rows=3))

    async def claiming(jobs: int) -> None:
        leases.extend(claim.lease for claim in await store.claim("worker", Wants(jobs), now + 1))

    async def filled(jobs: int) -> None:
        for _ in range(jobs - (await store.backlog("")).waiting_jobs):
            await adding()()

    await store.backlog("")  # a connection is there
    claim = await clock.of([functools.partial(claiming, 1)] * calls)
    add = await clock.of([adding() for _ in range(calls)])
    await filled(calls + _FEW)
    few = await clock.of([functools.partial(claiming, 1)] * calls)
    start = await clock.of([functools.partial(store.start, lease, now) for lease in leases[:calls]])
    renew = await clock.of([functools.partial(store.renew, leases[:1], now)] * calls)
    renewed = await clock.of([functools.partial(store.renew, leases[:_HELD], now)] * calls)
    ending = Ending(JobState.COMPLETED, artifacts={"0.png": "a" * 64})
    finish = await clock.of([functools.partial(store.finish, lease, ending, now) for lease in leases[:calls]])
    await filled(calls + _MANY)
    many = await clock.of([functools.partial(claiming, 1)] * calls)
    waiting = _each(few, many, _MANY - _FEW)
    # Both claims above saw, on the average, half of what they took themselves, too.
    claimed = _each(claim + waiting * (_FEW + calls / 2), few, 1)
    held = _each(renew, renewed, min(_HELD, len(leases)) - 1)
    return StoreCosts(add, claim, claimed, waiting, start, finish, renew, held, notify_s, cores)


def _each(less: Call, more: Call, count: int) -> Call:
    """What one of so many adds; never less than nothing, which noise may say."""
    busy_s = max(0.0, more.busy_s - less.busy_s) / count
    return Call(max(busy_s, (more.seconds - less.seconds) / count), busy_s)


async def _notified(url: str) -> float:
    """Seconds from a ring in one process to its being heard in another."""
    ringing, hearing = await open_store(url), await open_store(url)
    took = []
    async with hearing.listen() as bell:
        while await bell.wait(0.2):
            pass
        for _ in range(10):
            began = time.perf_counter()
            await ringing.wake()
            if await bell.wait(1.0):
                took.append(time.perf_counter() - began)
    await ringing.close()
    await hearing.close()
    return statistics.median(took)


@contextmanager
def _postgres() -> Iterator[tuple[str, psutil.Process] | None]:
    """An empty database on a server of one's own, with its default settings; None where none is installed."""
    from tests.postgres import programs, server

    with nullcontext() if programs() is None else server() as made:
        if made is None:
            yield None
        else:
            main = int((made.folder / "data" / "postmaster.pid").read_text().split()[0])
            yield made.create("simulated"), psutil.Process(main)


def store(calls: int, cores: int) -> tuple[str, StoreCosts]:
    """Which store was measured, and what its calls take, over so many of each.

    Args:
        calls: Of each kind.
        cores: How many the database's machine is to have.
    """
    with _postgres() as found:
        if found is not None:
            return "PostgreSQL", asyncio.run(_store(*found, calls, cores))
    with TemporaryDirectory() as folder:
        return "SQLite", asyncio.run(_store(f"sqlite:///{Path(folder)}/jobs.sqlite", None, calls, 1))
