"""The thread that ends jobs at their deadline, also while the engine's own is in a long forward."""

import math
import threading
import time
from collections.abc import Callable, Iterable

from service.engine.job import DeadlineError, Job


class Deadlines:
    """Ends jobs that are late. What they hold of the device is the engine's to free, at its next tick.

    Args:
        lock: The engine's, held wherever its jobs change.
        present: The engine's jobs that are not done with; called with the lock held.
    """

    def __init__(self, lock: threading.RLock, present: Callable[[], Iterable[Job]]) -> None:
        self._present = present
        self._changed = threading.Condition(lock)
        self._open = True
        self._thread = threading.Thread(target=self._run, name="superdiff-deadlines", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def came(self) -> None:
        """A job came; the lock is held."""
        self._changed.notify_all()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while (due := self._await_due()) is not None:
            # Not under the lock: who waits for a job may be called from here.
            for job in due:
                job.expire(DeadlineError(late(job)))

    def _await_due(self) -> list[Job] | None:
        """The next jobs that are late; None when there will not be any more."""
        with self._changed:
            while self._open:
                now = time.monotonic()
                live = [job for job in self._present() if not job.decided]
                if due := [job for job in live if job.deadline <= now]:
                    return due
                upcoming = min((job.deadline for job in live), default=math.inf)
                self._changed.wait(None if upcoming == math.inf else min(upcoming - now, threading.TIMEOUT_MAX))
        return None


def late(job: Job) -> str:
    """That a job was not done within its time."""
    limit = job.ask.timeout_s
    return f"not done within {limit:g} s" if math.isfinite(limit) else "not done in time"
