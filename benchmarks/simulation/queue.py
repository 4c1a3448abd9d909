"""The store's queue, by the order of :mod:`service.engine.turns` and the rows of :mod:`service.store.moves`."""

import math
from collections import deque
from collections.abc import Callable, Iterator

from benchmarks.simulation.traffic import Job
from service.engine.turns import in_turn
from service.store.moves import Candidate, fitting
from service.store.port import Rules
from service.store.records import Wants

Group = dict[tuple[str, int], deque[Job]]
"""(caller, priority) → its jobs, first come first; empty ones are removed."""


class Queue:
    """Jobs that wait, and whose turn it is."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._ageing_s = (rules or Rules()).ageing_s
        # By the models that the jobs need.
        self._groups: dict[frozenset[int], Group] = {}
        # Caller → when it was last served, as a count of claims.
        self._served: dict[str, int] = {}
        self._admissions = 0
        self._count = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    def add(self, job: Job) -> None:
        """A job comes, not before those that came earlier by their ``submitted``."""
        group = self._groups.setdefault(job.models, {})
        group.setdefault((job.candidate.caller, job.candidate.priority), deque()).append(job)
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
        for models, group in self._groups.items():
            before = now - patience(models) if patience else now
            if before > -math.inf:
                heads = (jobs for jobs in group.values() if jobs[0].candidate.submitted <= before)
                queues += [old_enough(jobs, before) for jobs in heads]
        if not queues:
            return []
        chosen = fitting(in_turn(queues, self._served, self._admissions, now, self._ageing_s), wants)
        taken = [found[each.id] for each in chosen]
        for job in taken:
            self._take(job)
        return taken

    def _take(self, job: Job) -> None:
        group, key = self._groups[job.models], (job.candidate.caller, job.candidate.priority)
        if group[key][0] is job:
            group[key].popleft()
        else:
            group[key].remove(job)
        if not group[key]:
            del group[key]
        if not group:
            del self._groups[job.models]
        self._count -= 1
        self._admissions += 1
        self._served[job.candidate.caller] = self._admissions
