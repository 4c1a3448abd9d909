"""The store's queue, by the order of :mod:`service.engine.turns` and the rows of :mod:`service.store.moves`."""

from collections import deque
from collections.abc import Callable, Iterator

from benchmarks.simulation.traffic import Job
from service.engine.turns import in_turn
from service.store.moves import Candidate, fitting
from service.store.port import Rules
from service.store.records import Wants

Key = tuple[str, int, frozenset[int]]


class Queue:
    """Jobs that wait, and whose turn it is."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._ageing_s = (rules or Rules()).ageing_s
        # (caller, priority, models) → its jobs, first come first. Empty queues are removed.
        self._queues: dict[Key, deque[Job]] = {}
        # Caller → when it was last served, as a count of claims.
        self._served: dict[str, int] = {}
        self._admissions = 0
        self._count = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    def add(self, job: Job) -> None:
        """A job comes, not before those that came earlier by their ``submitted``."""
        key = job.candidate.caller, job.candidate.priority, job.models
        self._queues.setdefault(key, deque()).append(job)
        self._count += 1

    def claim(self, wants: Wants, now: float, patience: Callable[[frozenset[int]], float] | None = None) -> list[Job]:
        """Take the next jobs.

        Args:
            wants: How many, of how many rows.
            now: In seconds.
            patience: How long jobs of these models must have waited; infinite for never, None for no time at all.
        """
        if not self._count:
            return []
        found: dict[str, Job] = {}

        def old_enough(jobs: deque[Job], before: float) -> Iterator[Candidate]:
            for job in jobs:
                if job.candidate.submitted > before:
                    return
                found[job.candidate.id] = job
                yield job.candidate

        queues: list[Iterator[Candidate]] = []
        for (_, _, models), jobs in self._queues.items():
            before = now - patience(models) if patience else now
            if jobs[0].candidate.submitted <= before:
                queues.append(old_enough(jobs, before))
        chosen = fitting(in_turn(queues, self._served, self._admissions, now, self._ageing_s), wants)
        taken = [found[each.id] for each in chosen]
        for job in taken:
            self._take(job)
        return taken

    def _take(self, job: Job) -> None:
        key = job.candidate.caller, job.candidate.priority, job.models
        jobs = self._queues[key]
        if jobs[0] is job:
            jobs.popleft()
        else:
            jobs.remove(job)
        if not jobs:
            del self._queues[key]
        self._count -= 1
        self._admissions += 1
        self._served[job.candidate.caller] = self._admissions
