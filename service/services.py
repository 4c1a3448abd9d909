"""What the routes are given."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
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
from service.room import Room
from service.settings import Settings

# A picture takes four bytes a pixel while it is decoded, and some twice that.
_PICTURES_AT_ONCE: Final = 1
# Reading a body takes about three times its size, with the picture's file that is in it.
_READ_AT_ONCE_BYTES: Final = 32 << 20
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
        reading: Bytes of large bodies that are read at once, from their text to the job that is made of them.
        decoding: The thread where large bodies are parsed and pictures decoded: a small file may hold a large picture.
            One thread, since the C library keeps for each what it freed.
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
    reading: Room = field(default_factory=lambda: Room(_READ_AT_ONCE_BYTES))
    decoding: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_PICTURES_AT_ONCE, "superdiff-pictures")
    )

    @property
    def catalog(self) -> Catalog:
        """The catalogue. A reload puts another in its place, so who needs it for longer than a moment takes it once."""
        return self.models.catalog

    async def decoded(self, work: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
        """What work on whole pictures gives: in a thread, one request's pictures at a time."""
        call = partial(contextvars.copy_context().run, work, *given, **named)
        return await asyncio.get_running_loop().run_in_executor(self.decoding, call)


def _of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_of)]
