"""The service on a Ray cluster: ``serve run service.cluster:app``.

One application of two deployments. ``api`` answers HTTP: each replica is an API without an engine, and any of them
answers for every job. ``worker`` computes: each replica is a worker over the same store, as ``superdiff worker`` is.
Jobs go from one to the other through the store, not through Ray: what a replica that dies had is taken up by another.

How many workers there are follows from what waits, by :mod:`service.workers.scaling`. Ray Serve offers four ways to
decide that by oneself. A policy of the deployment, fed by ``record_autoscaling_stats`` of its replicas, is the one
taken: the workers have the store open already, so nothing new needs an address or a key of it. A policy of the whole
application can be set only in a configuration file, not by ``serve run``; the one over Prometheus needs a Prometheus;
and the external one needs another process that decides, with Ray's dashboard open to it. The price is that there is
always one worker at least, as none tells of what waits where there is none.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import REQUEST_ID
from service.commands.common import catalog_path, read_settings
from service.commands.computing import prepare
from service.settings import MEMORY, Settings
from service.workers.scaling import BacklogPolicy, metrics_of

if TYPE_CHECKING:
    from fastapi import FastAPI

# Beyond the grace period: what is written last, and Ray's own steps.
_LAST_WRITES_S: Final = 20.0
_LOOK_EVERY_S: Final = 0.5


class Cluster(BaseModel):
    """What ``serve run service.cluster:app NAME=VALUE …`` may set; the rest is in the environment, as SUPERDIFF_*."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_replicas: Annotated[int, Field(ge=1, description="Replicas that answer HTTP.")] = 1
    api_cpus: Annotated[float, Field(ge=0, description="Processors that each is given.")] = 1.0
    min_workers: Annotated[int, Field(ge=1, description="The fewest replicas that compute.")] = 1
    max_workers: Annotated[int, Field(ge=1, description="The most.")] = 8
    worker_cpus: Annotated[float, Field(ge=0, description="Processors that each is given.")] = 1.0
    worker_gpus: Annotated[
        float | None,
        Field(ge=0, description="GPUs that each is given; none for one where this machine has one, else 0."),
    ] = None
    target_s: Annotated[float, Field(gt=0, description="Seconds in which what waits is to be done.")] = 60.0
    start_s: Annotated[float, Field(ge=0, description="Seconds until a new worker computes.")] = 30.0
    settle_s: Annotated[
        float, Field(ge=0, description="Seconds that fewer workers must be enough before there are fewer.")
    ] = 300.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers is at least min_workers, {self.min_workers}; got {self.max_workers}")
        return self


class Computing:
    """A replica that computes; for the event loop that Ray makes it in.

    Args:
        settings: What the operator set.
    """

    def __init__(self, settings: Settings) -> None:
        prepare(settings)
        from service.tracing import Tracing, provider_from_environment, wanted
        from service.workers.process import WorkerProcess

        self._tracing = Tracing(provider_from_environment()) if wanted() else None
        self._process = WorkerProcess(settings, tracing=self._tracing)
        self._running = asyncio.get_running_loop().create_task(self._process.run())

    async def check_health(self) -> None:
        """Raise where it computes no more: Ray replaces it."""
        if self._running.done():
            raise RuntimeError("the worker has ended") from self._running.exception()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What waits, for the policy."""
        load = await self._process.load()
        return {} if load is None else metrics_of(load)

    async def __del__(self) -> None:
        """Finish or give back what runs: Ray awaits this, and only then ends the process."""
        self._process.stop()
        await self._running
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


class WithoutId:
    """Leaves the request's id out of the answer: Ray's proxy, which gives each request its id, writes it there too."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[REQUEST_ID]
            await send(message)

        await self._inner(scope, receive, sending)


def app(asked: Cluster) -> Any:
    """The application, for ``serve run`` and ``serve deploy``.

    Args:
        asked: How large it is.

    Raises:
        InvalidInputError: A setting makes no sense.
        ValueError: The store would be each replica's own.
    """
    settings = settings_everywhere()
    grace_s = settings.stream_grace_s + _LAST_WRITES_S
    gpus = _gpus(settings) if asked.worker_gpus is None else asked.worker_gpus
    worker = serve.deployment(
        Computing,
        name="worker",
        ray_actor_options={"num_cpus": asked.worker_cpus, "num_gpus": gpus},
        autoscaling_config={
            "min_replicas": asked.min_workers,
            "max_replicas": asked.max_workers,
            # The policy itself waits before there are fewer.
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
            "policy": {
                "policy_function": f"{BacklogPolicy.__module__}:{BacklogPolicy.__qualname__}",
                "policy_kwargs": asked.model_dump(include={"target_s", "start_s", "settle_s"}),
            },
        },
        graceful_shutdown_timeout_s=grace_s,
        graceful_shutdown_wait_loop_s=_LOOK_EVERY_S,
    )
    api = serve.deployment(
        serve.ingress(_api(settings))(),
        name="api",
        num_replicas=asked.api_replicas,
        ray_actor_options={"num_cpus": asked.api_cpus},
        # Most requests only wait; Ray's own bound is 5.
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=grace_s,
        graceful_shutdown_wait_loop_s=_LOOK_EVERY_S,
    )
    # The API asks nothing of the workers; this makes them one application.
    return api.bind(worker.bind(settings))


def settings_everywhere() -> Settings:
    """The settings of this process's environment, as every replica gets them.

    Raises:
        InvalidInputError: One makes no sense.
        ValueError: The store would be each replica's own.
    """
    given = read_settings()
    if given.database == MEMORY:
        raise ValueError(f"replicas need a database that they share: postgresql://… or sqlite:///FILE, not {MEMORY}")
    catalog = catalog_path(None, given)
    return given.model_copy(
        update={
            "workers": 0,
            # Ray's proxies listen, wherever they are told to: others may reach them, so a key is asked for.
            "host": "0.0.0.0",  # noqa: S104
            "state": given.state.expanduser().absolute(),
            "catalog": None if catalog is None else catalog.expanduser().absolute(),
        }
    )


def _api(settings: Settings) -> "Callable[[], FastAPI]":
    """Makes the API in its replica; Ray runs its lifespan there."""

    def build() -> "FastAPI":
        prepare(settings)
        from service.app import create_app

        made = create_app(settings)
        made.add_middleware(WithoutId)
        return made

    return build


def _gpus(settings: Settings) -> int:
    import torch

    return int(settings.device != "cpu" and torch.cuda.is_available())
