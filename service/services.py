"""What the routes are given."""

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Final, ParamSpec, TypeVar

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from pipelines.catalog import Catalog
from pipelines.model import Model
from service.callbacks import Callbacks
from service.engine.engine import Engine
from service.keeper.keeper import Keeper
from service.keyring import Keyring
from service.quotas import Quotas
from service.registry import Registry
from service.settings import Settings

_DECODED_AT_ONCE: Final = 2
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True)
class Services:
    """The application's parts.

    Attributes:
        settings: What the operator set.
        catalog: The models. A reload puts the next one in its place (:mod:`service.reloading`), so who needs it for
            longer than a moment takes it once.
        engine: What runs the jobs.
        registry: The jobs that are in memory only.
        keeper: The jobs that outlive it; it finds every job.
        keyring: Who asks.
        callbacks: Who is told when a job is over.
        quotas: How much callers have left.
        ready: Set when the models that are to be ready are loaded, or cannot be.
        created: When the service was built, in Unix time.
        plotting: Held while a figure is drawn: one at a time.
        reloading: Held while the catalogue is read anew.
        decoding: Held while pictures are decoded: a small file may hold a large picture.
    """

    settings: Settings
    catalog: Catalog
    engine: Engine
    registry: Registry
    keeper: Keeper
    keyring: Keyring
    callbacks: Callbacks
    quotas: Quotas = field(default_factory=Quotas)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    created: int = field(default_factory=lambda: int(time.time()))
    plotting: asyncio.Lock = field(default_factory=asyncio.Lock)
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_DECODED_AT_ONCE))

    async def decoded(self, work: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
        """What work on whole pictures gives: in a thread, and only a few requests' pictures at a time."""
        async with self.decoding:
            return await asyncio.to_thread(work, *given, **named)

    @contextlib.asynccontextmanager
    async def models(self, names: Iterable[str], catalog: Catalog) -> AsyncIterator[Mapping[str, Model]]:
        """The models of these names, loaded off the event loop, and kept loaded until the block is left.

        Args:
            names: Of models.
            catalog: The catalogue that has them.

        Raises:
            UnknownModelError: There is none of a name.
            ModelLoadError: One cannot be loaded.
            HTTPException: 503 while the service still loads what it starts with.
        """
        wanted = list(dict.fromkeys(names))
        catalog.hold(wanted)
        try:
            for name in wanted:
                if catalog.loaded(name) is None and catalog.failure(name) is None and not self.ready.is_set():
                    raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"the model {name!r} is still being loaded")
            yield {name: catalog.loaded(name) or await self.load(name, catalog) for name in wanted}
        finally:
            catalog.release(wanted, unload=False)

    async def load(self, name: str, catalog: Catalog) -> Model:
        """The model of a name, loaded off the event loop; see :meth:`Catalog.get` for what is raised.

        In a thread that ends with it: OpenMP keeps a team of workers for every thread that ever computed, and with more
        workers than processors they all go to sleep between any two operations. On two cores the engine's steps took
        three times as long while a thread that had loaded models lived on.
        """
        loader = ThreadPoolExecutor(1, "superdiff-loader")
        try:
            return await asyncio.get_running_loop().run_in_executor(
                loader, contextvars.copy_context().run, catalog.get, name
            )
        finally:
            loader.shutdown(wait=False)


def _of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_of)]
