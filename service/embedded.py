"""The engine in the API's own process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry

from pipelines.card import Card
from pipelines.catalog import Catalog, Changes
from service.backend import WorkerState
from service.engine.engine import Engine
from service.engine.job import Job, Queued
from service.keeper.keeper import Keeper
from service.loading import Models, ModelState
from service.registry import Record, Registry


class Embedded:
    """See :class:`service.backend.Backend`.

    Args:
        engine: What runs the jobs.
        models: The models of this process.
        registry: The jobs that are in memory only.
        worker_id: What it is called among those who share a store.
    """

    keeps_all = False

    def __init__(self, engine: Engine, models: Models, registry: Registry, worker_id: str) -> None:
        self.engine = engine
        self._models, self._registry, self._id = models, registry, worker_id
        self._keeper: Keeper | None = None

    @property
    def stopped(self) -> str | None:
        """Why nothing will ever be computed here again."""
        return None if self.engine.alive else "the engine has stopped"

    @property
    def unready(self) -> str | None:
        """Why jobs should not be sent here now."""
        if not self.engine.accepting:
            return "the service is shutting down"
        return None if self._models.ready.is_set() else "models are still being loaded"

    @property
    def registry(self) -> CollectorRegistry:
        """What there is to measure."""
        return self.engine.metrics.registry

    @contextlib.asynccontextmanager
    async def cards(self, names: Iterable[str], catalog: Catalog) -> AsyncIterator[Mapping[str, Card]]:
        """What is known of models without their weights."""
        async with self._models.held(names, catalog) as models:
            yield {name: model.card for name, model in models.items()}

    def state(self, name: str) -> ModelState:
        """How a model stands."""
        return self._models.state(name)

    def submit(self, record: Record) -> None:
        """Queue a job that is in memory only."""
        self.engine.enqueue(record.job)
        self._registry.add(record)

    def cancel(self, job: Job) -> None:
        """Have a job cancelled."""
        self.engine.cancel(job)

    def positions(self) -> Mapping[str, int]:
        """For jobs that wait in this process, by their id, how many will start before them."""
        return self.engine.positions()

    def workers(self) -> Sequence[WorkerState]:
        """This process."""
        return [worker_state(self._id, self.engine, self._models)]

    async def queued(self) -> Queued:
        """What waits in this process."""
        return self.engine.queued

    async def reload(self) -> Changes:
        """Read the catalogue anew."""
        return await self._models.reload()

    async def start(self, keeper: Keeper) -> None:
        """Start the engine."""
        self._keeper = keeper
        self.engine.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more jobs, give those that run some seconds, and end."""
        await asyncio.to_thread(self.engine.stop, grace_s)
        if self._keeper is not None:
            await self._keeper.part(0.0, waiting=False)


def worker_state(worker_id: str, engine: Engine, models: Models, trouble: str | None = None) -> WorkerState:
    """How this process stands among those who compute.

    Args:
        worker_id: What it is called.
        engine: What runs its jobs.
        models: Its models.
        trouble: Why it cannot write down what becomes of jobs; None where it can.
    """
    catalog = models.catalog
    _, running = engine.load
    return WorkerState(
        id=worker_id,
        device=catalog.device,
        seen=time.time(),
        ready=models.ready.is_set(),
        accepting=engine.accepting,
        running_jobs=running,
        running_rows=engine.running_rows,
        rate=engine.rate,
        models={name: models.state(name) for name in catalog.names},
        trouble=trouble,
    )
