"""The application: everything is built here and handed on, nothing lives at module level."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from pipelines.catalog import Catalog
from service import faults
from service.access import Access
from service.api import admin, density, health, jobs, models, openai, problem, superpose, trajectory, workers
from service.api.delivery import message_of
from service.api.gate import Gate
from service.api.methods import Methods, allowed
from service.api.published import publish
from service.api.sdapi import mount as sdapi
from service.backend import Backend
from service.body_limit import BodyLimit
from service.building import build_engine, limits_of, make_state, read_catalog, rhythm_of, rules_of
from service.callbacks import Callbacks
from service.embedded import Embedded
from service.engine.engine import Engine
from service.engine.metrics import Metrics
from service.keeper.keeper import Keeper
from service.keeper.places import Places
from service.keeper.worker import Worker
from service.keyring import Keyring
from service.loading import Models
from service.registry import Registry
from service.services import Services
from service.settings import Settings
from service.store.artifacts import open_artifacts
from service.store.opening import open_stores
from service.store.retention import Retention
from service.tracing import Tracing, provider_from_environment, wanted
from service.web import page
from service.workers.crew import Crew, count_of
from service.workers.pool import Pool

_LOG: Final = logging.getLogger(__name__)
_FORGET_EVERY_S: Final = 10.0
# Headers that pages of other origins may send and read besides the usual ones.
_CORS_ASKED: Final = ["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "X-Client-Id"]
_CORS_TOLD: Final = [
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    *(f"X-Superdiff-{name}" for name in ("Id", "Seed", "Log-Density", "Kappa", "Lift", "Scale")),
]
_SWEEP_EVERY_S: Final = 60.0
_DESCRIPTION: Final = (
    "Compose pretrained diffusion models: OR, AND over prompts and models by superposition, "
    "reweighted by the Itô density estimator (Skreta et al., ICLR 2025)."
)


def create_app(
    settings: Settings | None = None,
    *,
    catalog: Catalog | None = None,
    engine: Engine | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Build the service.

    Args:
        settings: What the operator set; None to read the environment.
        catalog: The models; None for the settings' catalogue.
        engine: What runs the jobs, not yet started; None for one over the catalogue. It is started with the
            application and stopped with it.
        tracing: Where spans go; None for what OTEL_* in the environment asks for, by default nowhere.
    """
    settings = settings or Settings()
    catalog = catalog or read_catalog(settings)
    if tracing is None and wanted():
        tracing = Tracing(provider_from_environment())
    services = _build(settings, catalog, engine, tracing)
    app = FastAPI(
        title="superdiff-serve",
        version=version("superdiff-serve"),
        description=_DESCRIPTION,
        lifespan=lambda _: _life(services, tracing),
        docs_url=None,  # the page's, without foreign hosts
        redoc_url=None,
    )
    app.state.services = services
    dialects = {openai.PREFIX: openai.DIALECT, **sdapi.DIALECTS}
    render = faults.by_path(problem.DIALECT, dialects)
    app.state.render = render
    faults.install(app, render, lambda request: allowed(request.app, request.scope))
    _surround(app, services, render, tracing)
    for router in (
        superpose.router,
        density.router,
        jobs.router,
        trajectory.router,
        models.router,
        health.router,
        workers.router,
        admin.router,
        openai.router,
    ):
        app.include_router(router)
    sdapi.mount(app)
    page.mount(app)
    publish(app, problem.DIALECT, dialects)
    return app


def _build(settings: Settings, catalog: Catalog, engine: Engine | None, tracing: Tracing | None) -> Services:
    """The application's parts; jobs are computed in this process, or in others where there are to be workers."""
    registry = Registry(settings.hold_s, settings.hold_bytes)
    rhythm, metrics = rhythm_of(settings), Metrics()
    backend: Backend
    if settings.workers is None:
        engine = engine or build_engine(settings, catalog, tracing)
        models, worker, metrics = Models(catalog, preload=settings.preload), Worker(engine, rhythm), engine.metrics
        backend, keeper = Embedded(engine, models, registry, worker.id), Keeper(registry, worker, rhythm=rhythm)
    else:
        models, count = Models(catalog, preload=False), count_of(settings.workers)
        pool = Pool(models, metrics.registry, Crew(settings, count) if count else None)
        backend, keeper = pool, Keeper(registry, None, Places(limits_of(settings), pool.rate), rhythm)
    callbacks = Callbacks(
        settings.callback_hosts,
        settings.callback_secret.get_secret_value(),
        private=settings.callback_private,
        metrics=metrics,
    )
    return Services(settings, models, backend, registry, keeper, Keyring(), callbacks)


@contextlib.asynccontextmanager
async def _life(services: Services, tracing: Tracing | None) -> AsyncIterator[None]:
    """Open what outlives the process, compute, and close again."""
    settings, keeper, backend, models = services.settings, services.keeper, services.backend, services.models
    make_state(settings)
    stores = await open_stores(settings.database_url, rules_of(settings), shared=settings.workers is not None)
    try:
        await services.keyring.open(stores.keys, settings)
    except BaseException:
        await stores.close()
        raise
    services.quotas.open(stores.usage)
    await keeper.start(stores.jobs, open_artifacts(settings.artifacts_url), models)
    services.callbacks.start(stores.jobs, partial(message_of, keeper=keeper))
    await backend.start(keeper)
    background = [asyncio.create_task(each) for each in (models.prepare(), _forget(services), _sweep(services))]
    yield
    for task in background:
        task.cancel()
    await backend.stop(settings.grace_s)
    await services.callbacks.close()
    await keeper.stop()
    await stores.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)


def _surround(app: FastAPI, services: Services, render: faults.Renderer, tracing: Tracing | None) -> None:
    """Add what every request passes before its route; the last one added sees a request first."""
    settings = services.settings
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, together=settings.max_bodies_bytes)
    app.add_middleware(Methods)
    app.add_middleware(Gate, services=services, render=render, basic=tuple(sdapi.DIALECTS))
    app.add_middleware(Access)
    if settings.cors_origins:
        # Outermost: a browser asks beforehand without a key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_credentials=settings.cors_credentials,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_CORS_ASKED,
            expose_headers=_CORS_TOLD,
        )
    if tracing is not None:
        tracing.instrument(app)


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
            _LOG.info("unloaded %s: not in use", name)
