"""What bounds the jobs that wait in the store where no worker is in this process."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from service.engine.job import Job
from service.engine.scheduler import Limits, QueueFullError
from service.store.port import Store

_UNMEASURED_S: Final = 5.0
_SHORTEST_S: Final = 1.0
_LONGEST_S: Final = 600.0


def unmeasured() -> float | None:
    """The rate of workers of which nothing is known."""
    return None


@dataclass(frozen=True, slots=True)
class Places:
    """How many jobs may wait, for all processes of the service together.

    Attributes:
        limits: Those of one process's queue; here they hold for the store's.
        rate: Network rows a second of all workers together, as far as they have told; None for not known.
    """

    limits: Limits = field(default_factory=Limits)
    rate: Callable[[], float | None] = unmeasured

    async def check(self, job: Job, store: Store) -> None:
        """Refuse a job for which there is no place, and say when to come again.

        Jobs that come at the same moment through several processes may pass a bound by as many.

        Raises:
            QueueFullError: A bound would be passed.
        """
        backlog, limits = await store.backlog(job.caller), self.limits
        waiting, rows, own = backlog.waiting_jobs, backlog.waiting_rows, backlog.caller_jobs
        detail = None
        if waiting >= limits.waiting_jobs:
            detail = f"{waiting} jobs are waiting already; no more may"
        elif waiting and rows + job.rows > limits.waiting_rows:
            detail = (
                f"{rows} network rows wait already, this job needs {job.rows} more, and {limits.waiting_rows} may wait"
            )
        elif waiting and job.weight and backlog.waiting_bytes + job.weight > limits.waiting_bytes:
            detail = (
                f"{backlog.waiting_bytes} bytes of pictures wait already, this job brings {job.weight}; "
                f"{limits.waiting_bytes} may wait"
            )
        elif own >= (most := min(limits.caller_jobs, job.ask.caller_jobs or limits.caller_jobs)):
            detail = f"this caller has {own} jobs waiting or running, and {most} are allowed at once"
        if detail is not None:
            raise QueueFullError(detail, waiting, _pause(backlog.waiting_work, waiting, self.rate()))


def _pause(work: int, waiting: int, rate: float | None) -> float:
    """Seconds until about one job of those that wait is begun; a random part keeps clients apart."""
    if rate is None or not waiting:
        return _UNMEASURED_S * random.uniform(1, 2)
    return min(_LONGEST_S, max(_SHORTEST_S, work / waiting / rate)) * random.uniform(1, 2)
