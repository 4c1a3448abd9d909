"""A job of this process that the store knows of, until its end is written down."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from service.engine.job import Job, Outcome, Snapshot
from service.registry import Record
from service.store.records import Lease

_LOG: Final = logging.getLogger(__name__)


class Kept:
    """What the engine tells of a job from its thread, for the event loop to write down.

    Only the newest snapshot waits to be written.

    Args:
        record: The job; its snapshots and its end come here.
        lease: The right to write to it; None until the store has it.

    Attributes:
        started: Whether the store was told that it runs.
        lost: Whether another worker has it by now.
        told: The newest event that those in other processes were told.
        snapshot: To be written; None for none.
        how: Its end, to be written; None before.
        stirred: Set when there is something to write.
    """

    def __init__(self, record: Record, lease: Lease | None = None) -> None:
        self.record = record
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self.started = False
        self.lost = False
        self.told = 0
        self.snapshot: Snapshot | None = None
        self.how: Outcome | Exception | None = None
        self.stirred = asyncio.Event()
        self.job.saver, self.job.sealer = self._save, self._seal

    @property
    def job(self) -> Job:
        """The job."""
        return self.record.job

    @property
    def leased(self) -> bool:
        """Whether the store has it."""
        return self._lease is not None

    @property
    def lease(self) -> Lease:
        """The right to write to it."""
        if self._lease is None:
            raise RuntimeError(f"the store does not have the job {self.job.id}")
        return self._lease

    @lease.setter
    def lease(self, lease: Lease) -> None:
        self._lease = lease

    def _save(self, snapshot: Snapshot) -> None:
        def arrive() -> None:
            self.snapshot = snapshot
            self.stirred.set()

        self._tell(arrive)

    def _seal(self, how: Outcome | Exception) -> None:
        def arrive() -> None:
            self.how = how
            self.stirred.set()

        if not self._tell(arrive):
            self.job.conclude(how)

    def _tell(self, arrive: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(arrive)
        except RuntimeError:
            _LOG.warning("the service has ended; job %s goes on after a restart", self.job.id)
            return False
        return True
