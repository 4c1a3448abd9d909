"""What the API asks of whoever computes: an engine in this process, or workers behind the store."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry

from pipelines.card import Card
from pipelines.catalog import Catalog, Changes
from service.engine.job import Job, Queued
from service.keeper.keeper import Keeper
from service.loading import ModelState
from service.registry import Record


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Who computes, as it last told of itself.

    Attributes:
        id: Unlike any other worker's.
        device: The device of its models whose entry names none.
        seen: When it told, in Unix time.
        ready: Whether the models that it loads at the start are loaded, or cannot be.
        accepting: Whether it takes jobs.
        running_jobs: Jobs that take steps.
        running_rows: Their network rows of one step.
        rate: Network rows a second, while it has work; None before it was measured.
        models: How its models stand, by name.
        trouble: Why it cannot write down what becomes of jobs; None where it can.
    """

    id: str
    device: str
    seen: float
    ready: bool
    accepting: bool
    running_jobs: int
    running_rows: int
    rate: float | None
    models: Mapping[str, ModelState] = field(default_factory=dict)
    trouble: str | None = None


class Backend(Protocol):
    """Who computes."""

    @property
    def keeps_all(self) -> bool:
        """Whether every job is in the store, as other processes compute it."""
        ...

    @property
    def stopped(self) -> str | None:
        """Why nothing will ever be computed here again; None while that is not so."""
        ...

    @property
    def unready(self) -> str | None:
        """Why jobs should not be sent here now; None where they may."""
        ...

    @property
    def registry(self) -> CollectorRegistry:
        """What there is to measure."""
        ...

    def cards(self, names: Iterable[str], catalog: Catalog) -> AbstractAsyncContextManager[Mapping[str, Card]]:
        """What is known of models without their weights; where they are here, they stay until the context is left.

        Args:
            names: Of models.
            catalog: The catalogue that has them.

        Raises:
            UnknownModelError: There is none of a name.
            ModelLoadError: One cannot be loaded.
            ModelUnavailableError: One cannot be had now.
        """
        ...

    def state(self, name: str) -> ModelState:
        """How a model stands."""
        ...

    def submit(self, record: Record) -> None:
        """Queue a job that is in memory only; see :meth:`Engine.enqueue` for what is raised."""
        ...

    def cancel(self, job: Job) -> None:
        """Have a job cancelled, at once or soon; harmless for one that is over."""
        ...

    def positions(self) -> Mapping[str, int]:
        """For jobs that wait in this process, by their id, how many will start before them."""
        ...

    def workers(self) -> Sequence[WorkerState]:
        """All who compute."""
        ...

    async def queued(self) -> Queued:
        """What waits for them."""
        ...

    async def reload(self) -> Changes:
        """Read the catalogue anew, here and with those who compute.

        Raises:
            CatalogError: The file cannot be read or makes no sense; all stays as it was.
        """
        ...

    async def start(self, keeper: Keeper) -> None:
        """Begin; the keeper has begun."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no more jobs, give those that run some seconds, and end; more than once is harmless."""
        ...
