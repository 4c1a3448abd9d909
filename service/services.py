"""What the routes are given."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final, ParamSpec, TypeVar

from fastapi import Depends, Request

from pipelines.catalog import Catalog
from service.backend import Backend
from service.callbacks import Callbacks
from service.keeper.keeper import Keeper
from service.keyring import Keyring
from service.loading import Models
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
        models: The catalogue, and the models that are loaded in this process.
        backend: Who computes.
        registry: The jobs that this process remembers.
        keeper: Finds every job, and keeps those that outlive the process.
        keyring: Who asks.
        callbacks: Who is told when a job is over.
        quotas: How much callers have left.
        created: When the service was built, in Unix time.
        plotting: Held while a figure is drawn: one at a time.
        decoding: Held while pictures are decoded: a small file may hold a large picture.
    """

    settings: Settings
    models: Models
    backend: Backend
    registry: Registry
    keeper: Keeper
    keyring: Keyring
    callbacks: Callbacks
    quotas: Quotas = field(default_factory=Quotas)
    created: int = field(default_factory=lambda: int(time.time()))
    plotting: asyncio.Lock = field(default_factory=asyncio.Lock)
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_DECODED_AT_ONCE))

    @property
    def catalog(self) -> Catalog:
        """The catalogue. A reload puts another in its place, so who needs it for longer than a moment takes it once."""
        return self.models.catalog

    async def decoded(self, work: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
        """What work on whole pictures gives: in a thread, and only a few requests' pictures at a time."""
        async with self.decoding:
            return await asyncio.to_thread(work, *given, **named)


def _of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_of)]
