"""What the routes are given."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from pipelines.catalog import Catalog
from pipelines.model import Model
from service.engine.engine import Engine
from service.keeper.keeper import Keeper
from service.registry import Registry
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The application's parts.

    Attributes:
        settings: What the operator set.
        catalog: The models.
        engine: What runs the jobs.
        registry: The jobs that are in memory only.
        keeper: The jobs that outlive it; it finds every job.
        ready: Set when the models that are to be ready are loaded, or cannot be.
        created: When the service was built, in Unix time.
        plotting: Held while a figure is drawn: one at a time.
    """

    settings: Settings
    catalog: Catalog
    engine: Engine
    registry: Registry
    keeper: Keeper
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    created: int = field(default_factory=lambda: int(time.time()))
    plotting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @contextlib.asynccontextmanager
    async def models(self, names: Iterable[str]) -> AsyncIterator[Mapping[str, Model]]:
        """The models of these names, loaded off the event loop, and kept loaded until the block is left.

        Raises:
            UnknownModelError: There is none of a name.
            HTTPException: 503 while the service still loads what it starts with.
        """
        wanted = list(dict.fromkeys(names))
        self.catalog.hold(wanted)
        try:
            for name in wanted:
                if self.catalog.loaded(name) is None and not self.ready.is_set():
                    raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"the model {name!r} is still being loaded")
            yield {name: self.catalog.loaded(name) or await self.load(name) for name in wanted}
        finally:
            self.catalog.release(wanted, unload=False)

    async def load(self, name: str) -> Model:
        """The model of a name, loaded off the event loop; see :meth:`Catalog.get` for what is raised.

        In a thread that ends with it: OpenMP keeps a team of workers for every thread that ever computed, and with more
        workers than processors they all go to sleep between any two operations. On two cores the engine's steps took
        three times as long while a thread that had loaded models lived on.
        """
        loader = ThreadPoolExecutor(1, "superdiff-loader")
        try:
            return await asyncio.get_running_loop().run_in_executor(loader, self.catalog.get, name)
        finally:
            loader.shutdown(wait=False)


def _of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_of)]
