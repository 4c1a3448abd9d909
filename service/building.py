"""What the settings come to: the catalogue, the engine, the store's rules and rhythm; for all who compute."""

from dataclasses import replace

from pipelines.catalog import Catalog
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.metrics import Metrics
from service.engine.scheduler import Limits
from service.keeper.worker import Rhythm
from service.settings import Settings
from service.store.port import Rules
from service.tracing import Tracing


def read_catalog(settings: Settings) -> Catalog:
    """The settings' catalogue; :class:`CatalogError` names what is wrong in its file."""
    path, device, fast = settings.catalog, settings.device, settings.fast
    return Catalog.read(path, device, fast=fast) if path else Catalog.builtin(device, fast=fast)


def build_engine(settings: Settings, catalog: Catalog, tracing: Tracing | None = None) -> Engine:
    """The engine as the settings want it, not yet started."""
    metrics = Metrics()
    executor = Executor(
        catalog, forward_rows=settings.forward_rows, decode_images=settings.decode_images, metrics=metrics
    )
    return Engine(
        executor,
        limits_of(settings),
        decode_images=settings.decode_images,
        checkpoint_s=settings.checkpoint_s,
        metrics=metrics,
        watching=None if tracing is None else tracing.watch,
    )


def limits_of(settings: Settings) -> Limits:
    """The bounds of what waits and runs."""
    return Limits(
        waiting_jobs=settings.waiting_jobs,
        waiting_rows=settings.waiting_rows,
        waiting_bytes=settings.waiting_bytes,
        caller_jobs=settings.caller_jobs,
        running_rows=settings.running_rows,
        ageing_s=settings.ageing_s,
        stretch=settings.stretch,
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
    beat_s, poll_s = min(usual.beat_s, settings.lease_s / 6), min(usual.poll_s, settings.lease_s / 3)
    return replace(usual, lease_s=settings.lease_s, beat_s=beat_s, poll_s=poll_s, patience_s=settings.patience_s)
