"""What the routes are given."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from pipelines.catalog import Catalog
from pipelines.model import Model
from service.engine.engine import Engine
from service.registry import Registry
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The application's parts.

    Attributes:
        settings: What the operator set.
        catalog: The models.
        engine: What runs the jobs.
        registry: The jobs by id.
        ready: Set when the models that are to be ready are loaded, or cannot be.
        loader: The one thread that loads models: requests that wait for a model hold nobody else up.
    """

    settings: Settings
    catalog: Catalog
    engine: Engine
    registry: Registry
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    loader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "superdiff-loader"))

    async def load(self, name: str) -> Model:
        """The model of a name, loaded off the event loop; see :meth:`Catalog.get` for what is raised."""
        return await asyncio.get_running_loop().run_in_executor(self.loader, self.catalog.get, name)


def _of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_of)]
