"""A worker's process: an engine that computes what waits in the store, and tells of itself."""

import asyncio
import logging
import math
import time
from pathlib import Path
from typing import Final

from pipelines.catalog import Catalog
from service.building import build_engine, make_state, read_catalog, rhythm_of, rules_of
from service.embedded import worker_state
from service.engine.engine import Engine
from service.keeper.storage import Storage
from service.keeper.worker import Worker
from service.loading import Models
from service.settings import MEMORY, Settings
from service.store.artifacts import open_artifacts
from service.store.opening import open_store
from service.store.port import StoreError, StoreUnavailableError
from service.store.records import Presence
from service.tasks import happens
from service.tracing import Tracing
from service.workers.presence import SILENT_S, everybody, rates_of, write_presence
from service.workers.scaling import Load, backlog_seconds

_LOG: Final = logging.getLogger(__name__)
_TELL_EVERY_S: Final = 1.0
_UNLOAD_EVERY_S: Final = 10.0
_COUNT_EVERY_S: Final = 5.0


class WorkerProcess:
    """Computes until it is told to stop; for one event loop.

    Args:
        settings: What the operator set.
        catalog: The models; None for the settings' catalogue.
        tracing: Where spans go; None for nowhere.
    """

    def __init__(self, settings: Settings, catalog: Catalog | None = None, tracing: Tracing | None = None) -> None:
        self._settings = settings
        catalog = catalog or read_catalog(settings)
        self._engine: Engine = build_engine(settings, catalog, tracing)
        # What is known of a model without its weights is learned by loading it: all are, once.
        self._models = Models(catalog, preload=True)
        self._worker = Worker(self._engine, rhythm_of(settings))
        self._stop = asyncio.Event()
        self._storage: Storage | None = None

    def stop(self) -> None:
        """Finish what runs within the grace period, give the rest back, and end."""
        self._stop.set()

    async def reload(self) -> None:
        """Read the catalogue anew.

        Raises:
            CatalogError: The file cannot be read or makes no sense; all stays as it was.
        """
        await self._models.reload()

    async def load(self) -> Load | None:
        """What waits in the store and who works; None before the start and where the store cannot be asked."""
        if self._storage is None:
            return None
        store, now = self._storage.store, time.time()
        try:
            backlog, found = await store.backlog(""), await everybody(store, now)
        except StoreUnavailableError:
            return None
        states = [state for state, _ in found.values()]
        seconds = backlog_seconds(backlog.waiting_work, rates_of(each for each in states if each.accepting))
        slack = None if backlog.deadline is None else backlog.deadline - now
        return Load(backlog.waiting_jobs, seconds, slack, sum(each.running_jobs > 0 for each in states))

    async def run(self) -> None:
        """Compute until :meth:`stop`.

        Raises:
            ValueError: The store would be this process's own.
            StoreUnavailableError: The store cannot be reached at the start.
            StoreError: It is of another version, or lets nobody in.
        """
        settings = self._settings
        if settings.database == MEMORY:
            raise ValueError(
                f"a worker needs a database that it shares: sqlite:///FILE or postgresql://…, not {MEMORY}"
            )
        make_state(settings)
        store = await open_store(settings.database_url, rules_of(settings), shared=True)
        storage = self._storage = Storage(store, open_artifacts(settings.artifacts_url))
        self._worker.start(storage, self._models)
        self._engine.start()
        loading = asyncio.create_task(self._models.prepare())
        background = [asyncio.create_task(each) for each in (self._tell(storage), self._unload())]
        _LOG.info("worker %s computes", self._worker.id)
        await self._stop.wait()
        _LOG.info("worker %s stops", self._worker.id)
        self._storage = None
        await asyncio.to_thread(self._engine.stop, settings.grace_s)
        loading.cancel()
        await asyncio.gather(loading, *background, return_exceptions=True)
        await self._worker.stop()
        try:
            await store.leave(self._worker.id)
        except StoreError as error:
            _LOG.warning("nobody was told that the worker ends: %s", error)
        await store.close()

    async def _tell(self, storage: Storage) -> None:
        """Tell of itself, again and again, and learn whether there are others."""
        counted = -math.inf
        while True:
            trouble = None if storage.trouble is None else str(storage.trouble)
            state = worker_state(self._worker.id, self._engine, self._models, trouble)
            told = await asyncio.to_thread(write_presence, state, self._engine.metrics.registry)
            try:
                await storage.store.report(Presence(state.id, time.time(), told))
                if time.monotonic() >= counted + _COUNT_EVERY_S:
                    counted = time.monotonic()
                    others = await storage.store.present(time.time() - SILENT_S)
                    self._worker.alone = len(others) <= 1
            except StoreError as error:
                _LOG.warning("nothing is told of this worker: %s", error)
            except Exception:
                _LOG.exception("nothing is told of this worker")
            if self._settings.alive_file is not None and self._engine.alive:
                await asyncio.to_thread(touch, self._settings.alive_file)
            if await self._stops_within(_TELL_EVERY_S):
                return

    async def _unload(self) -> None:
        """Unload idle models as their time comes."""
        while not await self._stops_within(_UNLOAD_EVERY_S):
            for name in await asyncio.to_thread(self._models.catalog.unload_idle):
                _LOG.info("unloaded %s: not in use", name)

    async def _stops_within(self, seconds: float) -> bool:
        """Wait, but not beyond the end. Nothing is cut off in a transaction."""
        return await happens(self._stop, seconds)


def touch(file: Path) -> None:
    """Set a file's time to now; one that cannot be written is reported, and does not stop the worker."""
    try:
        file.touch()
    except OSError as error:
        _LOG.warning("SUPERDIFF_ALIVE_FILE: cannot be written: %s", error.strerror)
