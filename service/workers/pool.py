"""The workers behind the store, as the API sees them."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipelines.card import Card
from pipelines.catalog import Catalog, Changes
from pipelines.errors import ModelLoadError, ModelUnavailableError
from service.backend import WorkerState
from service.engine.job import Job, Queued
from service.keeper.keeper import Keeper
from service.keeper.storage import Storage
from service.loading import Models, ModelState
from service.registry import Record
from service.store.port import DiskFullError, StoreUnavailableError
from service.tasks import happens
from service.workers.crew import Crew
from service.workers.presence import Family, everybody, merged, rates_of
from service.workers.scaling import backlog_seconds

_LOG: Final = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 1.0


class Pool:
    """See :class:`service.backend.Backend`.

    Args:
        models: The catalogue; no model of it is loaded here.
        own: What this process measures.
        crew: The workers that this process starts; None for none.
    """

    keeps_all = True

    def __init__(self, models: Models, own: CollectorRegistry, crew: Crew | None) -> None:
        self._models, self._crew = models, crew
        self._workers: dict[str, tuple[WorkerState, list[Family]]] = {}
        # What is known of models outlives the workers that had them.
        self._cards: dict[str, Card] = {}
        self._queued = Queued(0, 0, 0)
        self._stopping = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._keeper: Keeper | None = None
        self._backlog_seconds = Gauge("superdiff_backlog_seconds", "Seconds of a worker that wait.", registry=own)
        self._backlog_jobs = Gauge("superdiff_backlog_jobs", "Jobs that no worker has.", registry=own)
        self._count = Gauge("superdiff_workers", "Workers that take jobs.", registry=own)
        self._own = own
        self._all = CollectorRegistry()
        self._all.register(_Everybody(self))

    @property
    def stopped(self) -> str | None:
        """Never: other workers may come."""
        return None

    @property
    def unready(self) -> str | None:
        """Why jobs should not be sent here now."""
        if self._stopping.is_set():
            return "the service is shutting down"
        states = [state for state, _ in self._workers.values() if state.accepting]
        if not states:
            return "no worker is there"
        troubles = [state.trouble for state in states]
        if all(troubles):
            return f"jobs cannot be written down: {troubles[0]}"
        return None if any(state.ready for state in states) else "models are still being loaded"

    @property
    def registry(self) -> CollectorRegistry:
        """What there is to measure, of this process and of every worker."""
        return self._all

    def rate(self) -> float | None:
        """Network rows a second of all workers together; None before it is known."""
        return sum(rates_of(self.workers())) or None

    @contextlib.asynccontextmanager
    async def cards(self, names: Iterable[str], catalog: Catalog) -> AsyncIterator[Mapping[str, Card]]:
        """What workers told of models."""
        yield {name: self._card(name, catalog) for name in dict.fromkeys(names)}

    def state(self, name: str) -> ModelState:
        """How a model stands: loaded where one worker has it, failed where none has and one cannot."""
        self._models.catalog.entry(name)
        told = [state.models[name] for state, _ in self._workers.values() if name in state.models]
        loaded = any(each.loaded for each in told)
        failures = [each.failure for each in told if each.failure is not None]
        return ModelState(self._cards.get(name), loaded, failures[0] if failures and not loaded else None)

    def submit(self, record: Record) -> None:
        """No job is in memory only: see :attr:`keeps_all`."""
        raise RuntimeError(f"job {record.job.id} is not in the store, and no engine is here")

    def cancel(self, job: Job) -> None:
        """Have a job cancelled, soon."""
        if self._keeper is not None:
            self._keeper.drop(job)

    def positions(self) -> Mapping[str, int]:
        """Where jobs that are followed here were last seen in the queue."""
        return {} if self._keeper is None else self._keeper.places

    def workers(self) -> Sequence[WorkerState]:
        """All who told of themselves lately."""
        return [state for state, _ in self._workers.values()]

    async def queued(self) -> Queued:
        """What no worker has, as it was a moment ago."""
        return self._queued

    async def reload(self) -> Changes:
        """Read the catalogue anew, here and in the workers that this process started."""
        changes = await self._models.reload()
        if self._crew is not None:
            self._crew.hang_up()
        return changes

    async def start(self, keeper: Keeper) -> None:
        """Start this process's workers, and look for all."""
        self._keeper = keeper
        if self._crew is not None:
            self._crew.start()
        self._looking = asyncio.create_task(self._look())

    async def stop(self, grace_s: float) -> None:
        """Take no more jobs, and end this process's workers."""
        self._stopping.set()
        until = time.monotonic() + grace_s
        if self._keeper is not None:
            self._keeper.drain()
        if self._crew is not None:
            await self._crew.stop(grace_s)
        if self._keeper is not None:
            # Workers that are not this process's take up what waits.
            await self._keeper.part(until - time.monotonic(), waiting=self._crew is None)
        if self._looking is not None:
            # Nothing is cut off in a transaction.
            await self._looking

    def everything(self) -> list[Metric]:
        """The metrics of this process and of every worker."""
        accepting = [state for state in self.workers() if state.accepting]
        self._count.set(len(accepting))
        self._backlog_jobs.set(self._queued.jobs)
        self._backlog_seconds.set(backlog_seconds(self._queued.work, rates_of(accepting)) or 0.0)
        told = [(worker, metrics) for worker, (_, metrics) in sorted(self._workers.items())]
        return merged(self._own.collect(), told)

    def _card(self, name: str, catalog: Catalog) -> Card:
        catalog.entry(name)
        state = self.state(name)
        if state.card is not None and (state.loaded or state.failure is None):
            return state.card
        if state.failure is not None:
            raise ModelLoadError(state.failure)
        raise ModelUnavailableError(f"no worker has loaded the model {name!r} yet")

    async def _look(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._look_once()
            except (StoreUnavailableError, DiskFullError) as error:
                self._storage.note(error)
            except Exception:
                _LOG.exception("the workers cannot be looked for")
            await happens(self._stopping, _LOOK_EVERY_S)

    async def _look_once(self) -> None:
        storage, now = self._storage, time.time()
        if storage.trouble is not None:
            await storage.probe()
        # Where no worker is left, nobody else ends jobs that are late.
        await storage.store.reap(now)
        self._workers = found = await everybody(storage.store, now)
        for state, _ in found.values():
            self._cards |= {name: model.card for name, model in state.models.items() if model.card is not None}
        backlog = await storage.store.backlog("")
        self._queued = Queued(backlog.waiting_jobs, backlog.waiting_rows, backlog.waiting_work, backlog.deadline)

    @property
    def _storage(self) -> Storage:
        if self._keeper is None:
            raise RuntimeError("the pool has not begun")
        return self._keeper.storage


class _Everybody(Collector):
    """What :meth:`Pool.everything` has, for Prometheus's own writer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        return self._pool.everything()

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: workers come and go."""
        return []
