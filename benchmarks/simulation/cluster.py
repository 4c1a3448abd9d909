"""Workers that claim from one store, and the ideal that they are measured against."""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.simulation.costs import Call, Device, Policy, StoreCosts
from benchmarks.simulation.loop import Loop
from benchmarks.simulation.queue import Queue
from benchmarks.simulation.traffic import Job, again
from benchmarks.simulation.worker import Doing, Worker
from service.store.records import Wants


@dataclass(frozen=True, slots=True)
class Course:
    """What came of a day.

    Attributes:
        jobs: All jobs; what was not done has an ``ended`` that is no number.
        seconds: From the day's beginning to its end, without what was left to do after it.
        workers: How many.
        busy_s: Seconds of devices that computed, in the day.
        needed_s: Seconds of devices in the day in which there was something to do for them: those that computed or
            loaded, and of those that did nothing as many as jobs waited.
        loads: Models that were loaded.
        calls: Calls to the store in the day, by kind.
        store_busy_s: Seconds that the store's cores worked, in the day.
        cores: How many those are.
    """

    jobs: list[Job]
    seconds: float
    workers: int
    busy_s: float
    needed_s: float
    loads: int
    calls: dict[str, int]
    store_busy_s: float
    cores: int

    @property
    def utilisation(self) -> float:
        """busy_s ÷ needed_s: 1 where no device is without work, or loads, while there is work."""
        return self.busy_s / self.needed_s if self.needed_s else 1.0

    @property
    def load(self) -> float:
        """Share of the day in which a device computed."""
        return self.busy_s / (self.workers * self.seconds)

    @property
    def waits(self) -> list[float]:
        """Seconds of each job that was done, in the order of coming."""
        return [job.wait for job in self.jobs if job.ended == job.ended]


class Gauge:
    """Adds up what the devices do.

    Args:
        loop: The time.
        workers: How many devices.
        until: When to stop.
    """

    def __init__(self, loop: Loop, workers: int, until: float) -> None:
        self._loop, self._until = loop, until
        self._count = {Doing.NOTHING: workers, Doing.LOADING: 0, Doing.COMPUTING: 0}
        self._waiting, self._since = 0, 0.0
        self.busy_s = self.needed_s = 0.0

    def waits(self, jobs: int) -> None:
        """So many jobs wait from now on."""
        self._tick()
        self._waiting = jobs

    def does(self, before: Doing, now: Doing) -> None:
        """A device does something else."""
        self._tick()
        self._count[before] -= 1
        self._count[now] += 1

    def _tick(self) -> None:
        now = min(self._loop.now, self._until)
        passed, self._since = now - self._since, now
        computing = self._count[Doing.COMPUTING]
        self.busy_s += passed * computing
        wanted = min(self._count[Doing.NOTHING], self._waiting)
        self.needed_s += passed * (computing + self._count[Doing.LOADING] + wanted)


class Database:
    """The store's machine: calls take turns on its cores, first come first served.

    Args:
        loop: The time.
        cores: How many calls it works on at once.
        until: When to stop counting.
    """

    def __init__(self, loop: Loop, cores: int, until: float) -> None:
        self._loop, self._until = loop, until
        self._free = [0.0] * cores
        self.busy_s = 0.0
        self.calls: dict[str, int] = {}

    def call(self, kind: str, cost: Call, then: Callable[..., None] | None = None, *given: Any) -> None:
        """Make a call; ``then`` is called when it is answered."""
        now = self._loop.now
        begun = max(now, heapq.heappop(self._free))
        heapq.heappush(self._free, begun + cost.busy_s)
        if now < self._until:
            self.busy_s += cost.busy_s
            self.calls[kind] = self.calls.get(kind, 0) + 1
        if then is not None:
            self._loop.at(begun + cost.seconds, then, *given)


class Cluster:
    """Workers, a store between them and the callers, and a day's jobs.

    Args:
        device: What a worker can do.
        workers: How many.
        costs: Of the store.
        policy: How workers claim.
        jobs: The day's.
        seconds: How long the day is.
        warm: The models that each worker has loaded in the morning.
        seed: Of the workers' random moments.
    """

    def __init__(
        self,
        device: Device,
        workers: int,
        costs: StoreCosts,
        policy: Policy,
        jobs: Sequence[Job],
        seconds: float,
        warm: Sequence[Sequence[int]],
        seed: int = 0,
    ) -> None:
        self._loop, self._costs, self._policy, self._seconds = Loop(), costs, policy, seconds
        self._random = random.Random(seed)
        self._jobs = again(jobs)
        self._queue = Queue()
        self._gauge = Gauge(self._loop, workers, seconds)
        self._store = Database(self._loop, costs.cores, seconds)
        table = device.step.table(device.rows)
        given = self._loop, device, table, self._done, self._gauge.does
        self._workers = [Worker(*given, warm[place], self._started) for place in range(workers)]
        # Workers with room that hear the bell; a worker that is about to claim is not among them.
        self._listening = dict.fromkeys(self._workers)
        self._claiming: set[Worker] = set()
        self._asked_at = dict.fromkeys(self._workers, 0.0)
        self._rings = 0
        self._left = len(self._jobs)

    def run(self) -> Course:
        """Play the day, and go on until its jobs are done or nothing can be done."""
        for job in self._jobs:
            self._loop.at(job.candidate.submitted, self._arrive, job)
        for worker in self._workers:
            self._loop.after(self._random.uniform(0, self._policy.poll_s), self._poll, worker)
            self._loop.after(self._random.uniform(0, self._policy.beat_s), self._beat, worker)
        self._loop.run()
        self._gauge.waits(0)
        loads = sum(worker.loads for worker in self._workers)
        gauge, store = self._gauge, self._store
        about = gauge.busy_s, gauge.needed_s, loads, store.calls, store.busy_s, self._costs.cores
        return Course(self._jobs, self._seconds, len(self._workers), *about)

    @property
    def _going(self) -> bool:
        """Whether there is, or will be, something to do; a day is followed by another at most."""
        return self._left > 0 and self._loop.now < 2 * self._seconds + 600

    def _arrive(self, job: Job) -> None:
        self._store.call("add", self._costs.add, self._added, job)

    def _added(self, job: Job) -> None:
        self._queue.add(job)
        self._gauge.waits(len(self._queue))
        self._ring()

    def _ring(self) -> None:
        self._rings += 1
        listening, self._listening = self._listening, {}
        for worker in listening:
            self._ask(worker, self._costs.notify_s + self._random.uniform(0, self._policy.spread_s))

    def _ask(self, worker: Worker, delay: float = 0.0) -> None:
        """Have a worker claim, unless it is about to or has no room."""
        if worker in self._claiming or worker.room <= 0:
            return
        self._claiming.add(worker)
        self._listening.pop(worker, None)
        delay += self._policy.defer_s * worker.fill
        if delay:
            self._loop.after(delay, self._send, worker)
        else:
            self._send(worker)

    def _send(self, worker: Worker) -> None:
        self._asked_at[worker] = self._loop.now
        if worker.room <= 0:
            self._claiming.discard(worker)
            return
        costs = self._costs
        before = costs.claim + costs.waiting * len(self._queue)
        self._store.call(
            "claim", before, self._claim, worker, Wants(self._policy.together, worker.room, None, worker.idle)
        )

    def _claim(self, worker: Worker, wants: Wants) -> None:
        patience = worker.patience(self._policy.mixed_s, self._policy.patience_s)
        jobs = self._queue.claim(wants, self._loop.now, patience)
        if jobs:
            self._gauge.waits(len(self._queue))
            self._store.call("claimed", self._costs.claimed * len(jobs), self._claimed, worker, jobs, self._rings)
        else:
            self._claimed(worker, jobs, self._rings)

    def _claimed(self, worker: Worker, jobs: list[Job], rings: int) -> None:
        self._claiming.discard(worker)
        if jobs:
            worker.join(jobs)
            self._ask(worker)
        elif rings != self._rings:
            self._ask(worker, self._costs.notify_s + self._random.uniform(0, self._policy.spread_s))
        else:
            self._listening[worker] = None

    def _started(self, job: Job) -> None:
        self._store.call("start", self._costs.start)

    def _done(self, worker: Worker, jobs: list[Job]) -> None:
        for job in jobs:
            self._store.call("finish", self._costs.finish, self._finished, job)
        self._ask(worker)

    def _finished(self, job: Job) -> None:
        job.ended = self._loop.now
        self._left -= 1
        if self._policy.ring_finished:
            self._ring()

    def _poll(self, worker: Worker) -> None:
        if self._going:
            due = self._asked_at[worker] + self._policy.poll_s
            if due <= self._loop.now:
                self._ask(worker)
                due = self._loop.now + self._policy.poll_s
            self._loop.at(due, self._poll, worker)

    def _beat(self, worker: Worker) -> None:
        if self._going:
            if worker.jobs:
                self._store.call("renew", self._costs.renew + self._costs.renewed * worker.jobs)
            self._loop.after(self._policy.beat_s, self._beat, worker)


class Ideal:
    """One queue and the same devices, and someone who sees all at once.

    No call takes time, and every model is loaded everywhere. A job that finds room starts at once, where it adds least
    to the sum of the step times of all jobs, its own included; the others wait in the same order as in the store. So no
    job waits while a device has room for it: with one job a device this is the queue M/G/k.

    Args:
        device: What a worker can do.
        workers: How many.
        jobs: The day's.
        seconds: How long the day is.
        merged: Whether rows of all models share a forward, and only a job of two models needs two: more than any device
            can do, and a bound.
    """

    def __init__(
        self, device: Device, workers: int, jobs: Sequence[Job], seconds: float, *, merged: bool = False
    ) -> None:
        self._loop, self._seconds = Loop(), seconds
        self._jobs = [_merged(job) for job in jobs] if merged else again(jobs)
        self._queue = Queue()
        self._gauge = Gauge(self._loop, workers, seconds)
        models = 1 + max((model for job in self._jobs for model in job.parts), default=0)
        device = replace(device, models=models)
        self._table, self._most = np.asarray(device.step.table(device.rows)), device.rows
        given = self._loop, device, self._table.tolist(), self._done, self._gauge.does
        self._workers = [Worker(*given, range(models)) for _ in range(workers)]
        self._place = {worker: place for place, worker in enumerate(self._workers)}
        # Of each worker: rows by model, rows, jobs, seconds of a step.
        self._rows = np.zeros((models, workers), dtype=np.int64)
        self._used, self._held = np.zeros(workers, dtype=np.int64), np.zeros(workers, dtype=np.int64)
        self._step = np.zeros(workers)

    def run(self) -> Course:
        """Play the day, and go on until its jobs are done."""
        for job in self._jobs:
            self._loop.at(job.candidate.submitted, self._arrive, job)
        self._loop.run()
        self._gauge.waits(0)
        gauge = self._gauge
        return Course(self._jobs, self._seconds, len(self._workers), gauge.busy_s, gauge.needed_s, 0, {}, 0.0, 1)

    def _arrive(self, job: Job) -> None:
        self._queue.add(job)
        self._give()

    def _give(self) -> None:
        """Place the next jobs while there is room for the first of them."""
        while len(self._queue):
            used = int(self._used.min())
            jobs = self._queue.claim(Wants(1, self._most - used, None, idle=not used), self._loop.now)
            if not jobs:
                break
            self._put(jobs[0])
        self._gauge.waits(len(self._queue))

    def _put(self, job: Job) -> None:
        longer = np.zeros_like(self._step)
        for model, rows in job.parts.items():
            held = self._rows[model]
            longer += self._table[np.minimum(held + rows, self._most)] - self._table[held]
        cost = self._step + (self._held + 1) * longer
        cost[self._used + job.candidate.rows > self._most] = np.inf
        place = int(cost.argmin())
        self._count(place, job, 1)
        self._workers[place].join([job])

    def _count(self, place: int, job: Job, sign: int) -> None:
        for model, rows in job.parts.items():
            before = self._rows[model, place]
            self._rows[model, place] = after = before + sign * rows
            self._step[place] += self._table[after] - self._table[before]
        self._used[place] += sign * job.candidate.rows
        self._held[place] += sign

    def _done(self, worker: Worker, jobs: list[Job]) -> None:
        for job in jobs:
            job.ended = self._loop.now
            self._count(self._place[worker], job, -1)
        self._give()


def _merged(job: Job) -> Job:
    """The job as if the n-th model of every job were the same one."""
    return Job(job.candidate, dict(enumerate(job.parts.values())), job.steps, job.images)
