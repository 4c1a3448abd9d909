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
from service.api import admin, density, health, jobs, models, openai, problem, superpose, trajectory
from service.api.delivery import message_of
from service.api.gate import Gate
from service.api.methods import Methods, allowed
from service.api.published import publish
from service.api.sdapi import mount as sdapi
from service.body_limit import BodyLimit
from service.callbacks import Callbacks
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.metrics import Metrics
from service.engine.scheduler import Limits
from service.keeper.keeper import Keeper, Rhythm
from service.keyring import Keyring
from service.registry import Registry
from service.reloading import load_all
from service.services import Services
from service.settings import Settings
from service.store.artifacts import open_artifacts
from service.store.opening import open_stores
from service.store.port import Rules
from service.store.retention import Retention
from service.tracing import Tracing, provider_from_environment, wanted
from service.web import page

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
    if catalog is None:
        read, device, fast = settings.catalog, settings.device, settings.fast
        catalog = Catalog.read(read, device, fast=fast) if read else Catalog.builtin(device, fast=fast)
    if tracing is None and wanted():
        tracing = Tracing(provider_from_environment())
    if engine is None:
        engine = build_engine(settings, catalog, tracing)
    registry = Registry(settings.hold_s, settings.hold_bytes)
    keeper = Keeper(engine, registry, rhythm_of(settings))
    keyring = Keyring()
    callbacks = Callbacks(
        settings.callback_hosts,
        settings.callback_secret.get_secret_value(),
        private=settings.callback_private,
        metrics=engine.metrics,
    )
    services = Services(settings, catalog, engine, registry, keeper, keyring, callbacks)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        make_state(settings)
        stores = await open_stores(settings.database_url, rules_of(settings))
        try:
            await keyring.open(stores.keys, settings)
        except BaseException:
            await stores.close()
            raise
        services.quotas.open(stores.usage)
        await keeper.start(stores.jobs, open_artifacts(settings.artifacts_url), services)
        callbacks.start(stores.jobs, partial(message_of, keeper=keeper))
        engine.start()
        background = [asyncio.create_task(each(services)) for each in (_load, _forget, _sweep)]
        yield
        for task in background:
            task.cancel()
        await asyncio.to_thread(engine.stop, settings.grace_s)
        await callbacks.close()
        await keeper.stop()
        await stores.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="superdiff-serve",
        version=version("superdiff-serve"),
        description=_DESCRIPTION,
        lifespan=lifespan,
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
        admin.router,
        openai.router,
    ):
        app.include_router(router)
    sdapi.mount(app)
    page.mount(app)
    publish(app, problem.DIALECT, dialects)
    return app


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


def build_engine(settings: Settings, catalog: Catalog, tracing: Tracing | None = None) -> Engine:
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
        executor,
        limits,
        decode_images=settings.decode_images,
        checkpoint_s=settings.checkpoint_s,
        metrics=metrics,
        watching=None if tracing is None else tracing.watch,
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
    """Load what is to be ready before the first request."""
    if services.settings.preload:
        await load_all(services, services.catalog)
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
            _LOG.info("unloaded %s: not in use", name)
