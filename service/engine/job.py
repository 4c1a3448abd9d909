"""One request inside the engine."""

import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.composition import Expression
from pipelines.sampler import NoiseSource, SamplerState, SamplingParams


@dataclass(frozen=True, slots=True)
class Point:
    """The weights and log-densities after one step; (images, components) each."""

    sigma: float
    weights: NDArray[np.float64]
    log_density: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job gives.

    Attributes:
        pictures: (images, height, width, 3) RGB.
        log_density: (images, components) in nats.
        mean_weights: (images, components).
        clamp_rate: (images,) the share of steps at which AND's weights were held back.
        trajectory: One point a step; empty unless asked for.
        queued_s: Seconds from submission to the first step.
        run_s: Seconds from then to the decoded picture.
    """

    pictures: NDArray[np.uint8]
    log_density: NDArray[np.float64]
    mean_weights: NDArray[np.float64]
    clamp_rate: NDArray[np.float64]
    trajectory: tuple[Point, ...]
    queued_s: float
    run_s: float


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the engine. What stands below ``started`` belongs to the engine's thread alone.

    Attributes:
        expression: What to compose.
        params: How.
        rows: Network rows that it needs at every step.
        keep_trajectory: Whether to record every step.
        id: Unlike any other.
        result: Resolves to the outcome, or to the error that ended the job.
        cancelled: Set from any thread; the engine drops the job at its next tick.
        submitted: When it came, on the monotonic clock.
        started: When it left the queue.
        state: How far it is.
        noise: Where its noise comes from.
        pending: Noise that is drawn for a step not yet taken.
        points: Its trajectory so far.
    """

    expression: Expression
    params: SamplingParams
    rows: int
    keep_trajectory: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    result: "Future[Outcome]" = field(default_factory=Future)
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    state: SamplerState | None = None
    noise: NoiseSource | None = None
    pending: Tensor | None = None
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Mark the result as running: then only the engine can end it, and no two threads race to."""
        self.result.set_running_or_notify_cancel()

    @property
    def index(self) -> int:
        """Steps taken."""
        return self.state.index if self.state is not None else 0

    @property
    def stepped(self) -> bool:
        """Whether every step is taken."""
        return self.state is not None and self.state.done

    def cancel(self) -> None:
        """Ask the engine to drop the job; harmless at any time and more than once."""
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        """End the job with an error, unless it has ended."""
        if not self.result.done():
            self.result.set_exception(error)

    def succeed(self, outcome: Outcome) -> None:
        """End the job with its outcome, unless it has ended."""
        if not self.result.done():
            self.result.set_result(outcome)
