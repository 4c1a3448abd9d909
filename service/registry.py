"""The jobs that this process remembers: those in memory only, and those that a dialect asks for by who sent them.

Where others compute, the latter are found in the store too, whichever process took them in (:meth:`Keeper.tasks`).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from service.engine.job import Job
from service.rendering import Rendering


@dataclass(frozen=True, slots=True)
class Record:
    """A job and how its pictures are wanted.

    Attributes:
        job: The job.
        rendering: How its pictures are wanted.
        kept: Whether the store has it.
        durable: Whether its client was promised that it outlives a crash; else it ends with its request.
    """

    job: Job
    rendering: Rendering = field(default_factory=Rendering)
    kept: bool = False
    durable: bool = True


class Registry:
    """Id → record, in memory. Finished jobs are kept for a time and up to a size, those that are not over always.

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

    def find(self, job_id: str) -> Record | None:
        """The record of an id; None where there is none."""
        self.forget()
        with self._lock:
            return self._records.get(job_id)

    def remove(self, job_id: str) -> None:
        """Forget a job; harmless where there is none of that id."""
        with self._lock:
            self._records.pop(job_id, None)

    def of(self, caller: str) -> list[Record]:
        """The caller's jobs, newest first."""
        self.forget()
        with self._lock:
            return [record for record in reversed(self._records.values()) if record.job.caller == caller]

    def of_session(self, caller: str, label: str | None) -> list[Record]:
        """The caller's jobs that have the label, or have none if it is None; newest first."""
        return [record for record in self.of(caller) if record.rendering.label == label]

    def forget(self) -> None:
        """Drop the finished jobs that are too old, and the longest finished where all together are too large."""
        with self._lock:
            over = sorted((r.job for r in self._records.values() if r.job.over), key=lambda job: job.ended)
            held = sum(job.size for job in over)
            for job in over:
                if held > self._keep_bytes or job.ended + self._keep_s < self._clock():
                    held -= job.size
                    del self._records[job.id]
