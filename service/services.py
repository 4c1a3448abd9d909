"""What the routes are given."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from pipelines.catalog import Catalog
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
        ready: Set when the models that are to be ready are loaded.
    """

    settings: Settings
    catalog: Catalog
    engine: Engine
    registry: Registry
    ready: asyncio.Event = field(default_factory=asyncio.Event)


def _of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_of)]
