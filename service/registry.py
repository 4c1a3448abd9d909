"""The jobs that can be asked for by their id: those that run, and for a while those that are over."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from service.engine.job import Job
from service.schemas import AndRequest, OrRequest


class UnknownJobError(Exception):
    """No job of that id, or none any more."""


@dataclass(frozen=True, slots=True)
class Record:
    """A job and the request that asked for it."""

    job: Job
    body: OrRequest | AndRequest


class Registry:
    """Id → record. Finished jobs are kept for a time and in a number; those that are not over are never forgotten.

    An id cannot be guessed, so whoever knows it may ask for the job and cancel it; only lists are by caller.

    Args:
        keep_s: How long a finished job can be asked for.
        keep_jobs: How many finished jobs can.
        clock: The monotonic clock.
    """

    def __init__(
        self, keep_s: float = 600.0, keep_jobs: int = 256, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_s, self._keep_jobs, self._clock = keep_s, keep_jobs, clock
        self._lock = threading.Lock()
        self._records: OrderedDict[str, Record] = OrderedDict()

    def add(self, record: Record) -> None:
        """Remember a job."""
        with self._lock:
            self._records[record.job.id] = record
            self._forget()

    def get(self, job_id: str) -> Record:
        """The record of an id; :class:`UnknownJobError` where there is none."""
        with self._lock:
            self._forget()
            record = self._records.get(job_id)
        if record is None:
            raise UnknownJobError(f"no job {job_id!r}; finished jobs are kept for {self._keep_s:g} s")
        return record

    def of(self, caller: str) -> list[Record]:
        """The caller's jobs, newest first."""
        with self._lock:
            self._forget()
            return [record for record in reversed(self._records.values()) if record.job.caller == caller]

    def _forget(self) -> None:
        over = [record.job for record in self._records.values() if record.job.over]
        surplus = len(over) - self._keep_jobs
        for i, job in enumerate(over):
            if i < surplus or job.ended + self._keep_s < self._clock():
                del self._records[job.id]
