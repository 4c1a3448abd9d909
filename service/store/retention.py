"""What is forgotten: finished jobs by age and by the space of their files, then files that no job refers to."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.store.artifacts import Artifacts, FolderArtifacts
from service.store.port import Store

_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Retention:
    """How long and how much is kept.

    Attributes:
        keep_s: Seconds that a finished job can be asked for.
        keep_bytes: Bytes that the files of all jobs may hold; the longest finished jobs go first. Jobs that are not
            over are never forgotten, so more may be held while they run.
        unused_s: Seconds that a file is kept that no job refers to. Longer than from storing a file to noting it in a
            job.
    """

    keep_s: float = 600.0
    keep_bytes: int = 512 << 20
    unused_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a sweep removed.

    Attributes:
        jobs: How many.
        files: How many.
        size: Their bytes.
    """

    jobs: int
    files: int
    size: int


async def sweep(store: Store, artifacts: Artifacts, retention: Retention, now: float) -> Forgotten:
    """Forget what is too old or too much. Any process may do so at any time, several at once too.

    A file is removed only if no job referred to it after it was last stored, and if that is long ago; so one that a
    job is about to refer to stays.

    Args:
        store: The jobs.
        artifacts: Their files.
        retention: How long and how much is kept.
        now: In Unix seconds.
    """
    jobs = await _forget_old(store, now - retention.keep_s)
    files = {file.address: file.size for file in await artifacts.all()}
    jobs += await _forget_until_small(store, files, retention.keep_bytes)
    unused_since = now - retention.unused_s
    idle = [file for file in await artifacts.all() if file.used <= unused_since]
    referred = await store.references()
    removed = [f for f in idle if f.address not in referred and await artifacts.remove(f.address, unused_since)]
    if isinstance(artifacts, FolderArtifacts):
        await asyncio.to_thread(artifacts.clean, unused_since)
    return Forgotten(jobs, len(removed), sum(file.size for file in removed))


async def _forget_old(store: Store, before: float) -> int:
    jobs = 0
    while records := await store.expired(before, _AT_ONCE):
        deleted = await store.delete([record.id for record in records])
        if not deleted:  # another process is at it
            break
        jobs += deleted
    return jobs


async def _forget_until_small(store: Store, sizes: Mapping[str, int], keep_bytes: int) -> int:
    jobs = 0
    while (excess := sum(sizes.get(each, 0) for each in await store.references()) - keep_bytes) > 0:
        chosen = []
        for record in await store.expired(math.inf, _AT_ONCE):
            if excess <= 0:
                break
            # At most so much: files that other jobs refer to as well stay, and are counted in the next round.
            excess -= sum(sizes.get(each, 0) for each in record.addresses)
            chosen.append(record.id)
        deleted = await store.delete(chosen)
        if not deleted:
            break
        jobs += deleted
    return jobs
