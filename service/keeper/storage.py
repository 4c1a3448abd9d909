"""Where jobs and their files are kept, and whether that can be written to now."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from service.keeper.errors import LostFileError
from service.store.artifacts import Artifacts, DamagedArtifactError, UnknownArtifactError
from service.store.port import DiskFullError, Store, StoreError, StoreUnavailableError

_LOG: Final = logging.getLogger(__name__)
_RETRY_S: Final = (0.1, 0.5, 1.0, 2.0)
_PROBE_BYTES: Final = 1 << 16

T = TypeVar("T")


class Storage:
    """The store, its files, and the last trouble with either.

    Args:
        store: Where jobs are.
        artifacts: Where their files are.
    """

    def __init__(self, store: Store, artifacts: Artifacts) -> None:
        self.store, self.artifacts = store, artifacts
        self._trouble: StoreError | None = None

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be written now; None where it can."""
        return self._trouble

    def note(self, error: StoreError) -> None:
        """Remember why nothing can be written, until a probe can."""
        if self._trouble is None:
            _LOG.error("jobs cannot be written down: %s", error)
        self._trouble = error

    async def probe(self) -> None:
        """See whether what could not be written can be by now.

        Raises:
            StoreUnavailableError: It cannot.
            DiskFullError: Likewise.
        """
        written = await self.artifacts.put(os.urandom(_PROBE_BYTES))
        await self.artifacts.remove(written, math.inf)
        await self.store.reap(time.time())
        self._trouble = None

    async def persisted(self, act: Callable[[], Awaitable[T]], *, through_full_disk: bool = False) -> T:
        """What is done in the store, tried again for as long as that cannot be reached.

        Args:
            act: Does it.
            through_full_disk: Whether to try again where the disk is full, too.

        Raises:
            DiskFullError: The disk is full.
        """
        tries = 0
        while True:
            try:
                return await act()
            except StoreUnavailableError as error:
                self.note(error)
            except DiskFullError as error:
                self.note(error)
                if not through_full_disk:
                    raise
            await asyncio.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
            tries += 1

    async def file(self, address: str) -> bytes:
        """A file of a job; :class:`LostFileError` where it is not there any more, or damaged."""
        try:
            return await self.artifacts.get(address)
        except (UnknownArtifactError, DamagedArtifactError) as error:
            raise LostFileError("a file of this job is lost or damaged") from error
