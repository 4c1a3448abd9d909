"""The application: everything is built here and handed on, nothing lives at module level."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI

from pipelines.catalog import Catalog
from pipelines.errors import PipelineError
from service import faults
from service.api import density, health, jobs, models, openai, problem, superpose, trajectory
from service.api.sdapi import mount as sdapi
from service.body_limit import BodyLimit
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.metrics import Metrics
from service.engine.scheduler import Limits
from service.keeper.keeper import Keeper, Rhythm
from service.registry import Registry
from service.services import Services
from service.settings import Settings
from service.store.artifacts import open_artifacts
from service.store.opening import open_store
from service.store.port import Rules
from service.store.retention import Retention
from service.web import page

_LOG: Final = logging.getLogger(__name__)
_FORGET_EVERY_S: Final = 10.0
_SWEEP_EVERY_S: Final = 60.0
_DESCRIPTION: Final = (
    "Compose pretrained diffusion models: OR, AND over prompts and models by superposition, "
    "reweighted by the Itô density estimator (Skreta et al., ICLR 2025)."
)


def create_app(
    settings: Settings | None = None, *, catalog: Catalog | None = None, engine: Engine | None = None
) -> FastAPI:
    """Build the service.

    Args:
        settings: What the operator set; None to read the environment.
        catalog: The models; None for the settings' catalogue.
        engine: What runs the jobs, not yet started; None for one over the catalogue. It is started with the
            application and stopped with it.
    """
    settings = settings or Settings()
    if catalog is None:
        read, device, fast = settings.catalog, settings.device, settings.fast
        catalog = Catalog.read(read, device, fast=fast) if read else Catalog.builtin(device, fast=fast)
    if engine is None:
        engine = build_engine(settings, catalog)
    registry = Registry(settings.hold_s, settings.hold_bytes)
    keeper = Keeper(engine, registry, catalog.names, rhythm_of(settings))
    services = Services(settings, catalog, engine, registry, keeper)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        make_state(settings)
        store = await open_store(settings.database_url, rules_of(settings))
        await keeper.start(store, open_artifacts(settings.artifacts_url), services.models, services.ready)
        engine.start()
        background = [asyncio.create_task(each(services)) for each in (_load, _forget, _sweep)]
        yield
        for task in background:
            task.cancel()
        await asyncio.to_thread(engine.stop, settings.grace_s)
        await keeper.stop()

    app = FastAPI(
        title="superdiff-serve", version=version("superdiff-serve"), description=_DESCRIPTION, lifespan=lifespan
    )
    app.state.services = services
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    faults.install(app, problem.render, {openai.PREFIX: openai.render, **sdapi.DIALECT})
    for router in (
        superpose.router,
        density.router,
        jobs.router,
        trajectory.router,
        models.router,
        health.router,
        openai.router,
    ):
        app.include_router(router)
    sdapi.mount(app)
    page.mount(app)
    return app


def build_engine(settings: Settings, catalog: Catalog) -> Engine:
    """The engine as the settings want it, not yet started."""
    metrics = Metrics()
    limits = Limits(
        waiting_jobs=settings.waiting_jobs,
        waiting_rows=settings.waiting_rows,
        waiting_bytes=settings.waiting_bytes,
        caller_jobs=settings.caller_jobs,
        running_rows=settings.running_rows,
        ageing_s=settings.ageing_s,
        stretch=settings.stretch,
    )
    executor = Executor(
        catalog, forward_rows=settings.forward_rows, decode_images=settings.decode_images, metrics=metrics
    )
    return Engine(
        executor, limits, decode_images=settings.decode_images, checkpoint_s=settings.checkpoint_s, metrics=metrics
    )


def make_state(settings: Settings) -> None:
    """Make the folder for what outlives the process, if something goes there.

    Raises:
        OSError: It cannot be made; names the setting.
    """
    if settings.uses_state:
        try:
            settings.state.expanduser().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            detail = "SUPERDIFF_STATE: the folder cannot be made; name another, or SUPERDIFF_DATABASE=memory: for none"
            raise OSError(error.errno, detail) from error


def rules_of(settings: Settings) -> Rules:
    """What all processes on one store must agree on."""
    return Rules(lease_s=settings.lease_s, ageing_s=settings.ageing_s)


def rhythm_of(settings: Settings) -> Rhythm:
    """How often the keeper looks after its jobs: often enough for the lease."""
    usual = Rhythm()
    return Rhythm(settings.lease_s, min(usual.beat_s, settings.lease_s / 6), min(usual.poll_s, settings.lease_s / 3))


async def _load(services: Services) -> None:
    """Load what is to be ready before the first request; a model that fails is reported and leaves the others."""
    if services.settings.preload:
        for name in services.catalog.names:
            try:
                await services.load(name)
                _LOG.info("loaded %s", name)
            except PipelineError as error:
                _LOG.error("%s", error)
            except Exception:
                _LOG.exception("%s cannot be loaded", name)
    services.ready.set()


async def _sweep(services: Services) -> None:
    """Delete kept jobs as their time comes, and files that none refers to."""
    settings = services.settings
    retention = Retention(settings.keep_s, settings.keep_bytes)
    while True:
        await asyncio.sleep(_SWEEP_EVERY_S)
        try:
            await services.keeper.forget(retention)
        except Exception:
            _LOG.exception("old jobs cannot be deleted")


async def _forget(services: Services) -> None:
    """Drop finished jobs and idle models as their time comes, also when nobody asks."""
    while True:
        await asyncio.sleep(_FORGET_EVERY_S)
        services.registry.forget()
        for name in await asyncio.to_thread(services.catalog.unload_idle):
            _LOG.info("unloaded %s: idle", name)
