"""The jobs that can be asked for by their id: those that run, and for a while those that are over."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.engine.job import Job
from service.metadata import Origin
from service.pictures import ImageFormat


class UnknownJobError(Exception):
    """No job of that id, or none any more."""


@dataclass(frozen=True, slots=True)
class Record:
    """A job and how its pictures are wanted.

    Attributes:
        job: The job.
        image_format: Of its pictures.
        by_url: Whether answers tell where to fetch pictures instead of holding them.
        quality: Of the pictures' encoding, as :func:`service.pictures.encode_picture` has it.
        task: What its caller calls the job, in a dialect in which callers name their jobs; None in others.
        origin: The picture that the job began from, if there is one.
        label: How its client groups its jobs, if it does.
    """

    job: Job
    image_format: ImageFormat = ImageFormat.PNG
    by_url: bool = False
    quality: int | None = None
    task: str | None = None
    origin: Origin | None = None
    label: str | None = None


class Registry:
    """Id → record. Finished jobs are kept for a time and up to a size; those that are not over are never forgotten.

    A job is its caller's alone: to others it is as if there were none of its id.

    Args:
        keep_s: How long a finished job can be asked for.
        keep_bytes: How much finished jobs may hold, all together; the longest finished go first.
        clock: The monotonic clock.
    """

    def __init__(
        self, keep_s: float = 600.0, keep_bytes: int = 512 << 20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_s, self._keep_bytes, self._clock = keep_s, keep_bytes, clock
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}

    def add(self, record: Record) -> None:
        """Remember a job."""
        with self._lock:
            self._records[record.job.id] = record
        self.forget()

    def get(self, job_id: str, caller: str) -> Record:
        """The record of a caller's job by its id; :class:`UnknownJobError` where the caller has none of it."""
        self.forget()
        with self._lock:
            record = self._records.get(job_id)
        if record is None or record.job.caller != caller:
            raise UnknownJobError(f"no job {job_id!r}; finished jobs are kept for {self._keep_s:g} s")
        return record

    def ids(self) -> set[str]:
        """The ids of all jobs that can be asked for."""
        self.forget()
        with self._lock:
            return set(self._records)

    def of(self, caller: str) -> list[Record]:
        """The caller's jobs, newest first."""
        self.forget()
        with self._lock:
            return [record for record in reversed(self._records.values()) if record.job.caller == caller]

    def of_session(self, caller: str, label: str | None) -> list[Record]:
        """The caller's jobs that have the label, or have none if it is None; newest first."""
        return [record for record in self.of(caller) if record.label == label]

    def forget(self) -> None:
        """Drop the finished jobs that are too old, and the longest finished where all together are too large."""
        with self._lock:
            over = sorted((r.job for r in self._records.values() if r.job.over), key=lambda job: job.ended)
            held = sum(job.size for job in over)
            for job in over:
                if held > self._keep_bytes or job.ended + self._keep_s < self._clock():
                    held -= job.size
                    del self._records[job.id]
