"""One request inside the engine."""

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.catalog import Catalog
from pipelines.composition import Expression, Path
from pipelines.draws import Draw, NoiseSource
from pipelines.params import SamplingParams
from pipelines.plan import Plan
from pipelines.sampler import SamplerState
from service.engine.events import Channel
from service.engine.pace import Parts
from service.engine.scheduler import DEFAULT_PRIORITY
from service.logs import request_id


class CancelledJobError(Exception):
    """The job was cancelled."""


class DeadlineError(Exception):
    """The job was not done within its time."""


class EngineStoppedError(Exception):
    """The engine takes no more jobs, or ended before this one was done."""

    def __init__(self, why: str = "the service is shutting down") -> None:
        super().__init__(why)


class Phase(StrEnum):
    """Where a job is; the last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    DECODING = "decoding"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Point:
    """The weights and log-densities after one step.

    Attributes:
        step: Network calls made.
        sigma: The noise level reached.
        weights: (samples, leaves) the leaves' coefficients in the step.
        log_density: (samples, leaves) log q in nats.
        effective: (images × candidates,) the particles' effective sample size before resampling; None without any.
    """

    step: int
    sigma: float
    weights: NDArray[np.float64]
    log_density: NDArray[np.float64]
    effective: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What the pictures would be if sampling ended now; (images, height, width, 3) RGB, small."""

    step: int
    pictures: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job gives.

    Attributes:
        pictures: (images, height, width, 3) RGB.
        log_density: (images, leaves) in nats.
        node_log_density: Where each operator with a log-density is → (images,) in nats.
        mean_weights: (images, leaves).
        clamp_rate: (images,) the share of steps at which balanced AND's weights were held back.
        lift: (images, leaves) log q_i − log q_u of the picture in nats; NaN where it is not known.
        lift_maps: (images, leaves, …) the same by cell; None unless asked for.
        candidate: (images,) which candidate each picture is.
        survivors: (images,) from how many first particles the last ones descend.
        trajectory: One point a step; empty unless asked for.
        queued_s: Seconds from submission to the first step.
        run_s: Seconds from then to the decoded picture.
        resumed_from: The network calls that an earlier run had made; 0 where none had.
    """

    pictures: NDArray[np.uint8]
    log_density: NDArray[np.float64]
    node_log_density: Mapping[Path, NDArray[np.float64]]
    mean_weights: NDArray[np.float64]
    clamp_rate: NDArray[np.float64]
    lift: NDArray[np.float64]
    lift_maps: NDArray[np.float32] | None
    candidate: NDArray[np.int64]
    survivors: NDArray[np.int64]
    trajectory: tuple[Point, ...]
    queued_s: float
    run_s: float
    resumed_from: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """The known picture of a job, at the size that is sampled.

    Attributes:
        pixels: (height, width, 3) RGB.
        mask: (height, width) in 255ths, 255 where it is painted anew; None for everywhere.
        blend: (height, width) in 255ths, the share of what was painted in the final pixels; 0 wherever the mask is.
            None for 255 everywhere.
        width: Of the answer, which is cut from the upper left.
        height: Likewise.
        retrace: Whether only the picture's densities are wanted.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    blend: NDArray[np.uint8] | None
    width: int
    height: int
    retrace: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(array.nbytes for array in (self.pixels, self.mask, self.blend) if array is not None)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A running job between two steps: with it the same request goes on to the same pictures.

    Attributes:
        index: Network calls made.
        tensors: What has come of them (:func:`pipelines.checkpoint.tensors_of`), on the host.
        streams: How far its generators are (:attr:`pipelines.draws.NoiseSource.states`).
        ahead: What was drawn for the next step already, before ``streams``; None where nothing was.
        points: Its trajectory so far.
        ran_s: Seconds that it has run.
    """

    index: int
    tensors: Mapping[str, Tensor]
    streams: Tensor
    ahead: Draw | None
    points: tuple[Point, ...]
    ran_s: float


Saver = Callable[[Snapshot], None]
"""Takes a job's snapshots on the engine's thread; it must not wait."""

Sealer = Callable[[Outcome | Exception], None]
"""Takes a job's end on whatever thread ends it, must not wait, and sees to it that :meth:`Job.conclude` or
:meth:`Job.leave` is called."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants of the engine besides the sample itself.

    Attributes:
        caller: Who asks; callers are served in turn.
        priority: 0 to 9; higher runs earlier.
        timeout_s: After how many seconds the answer is worthless.
        keep_trajectory: Whether to record every step.
        keep_lift_maps: Whether to keep the lift of every cell.
        preview_every: Every how many steps to show a preview to listeners; 0 for never.
        previews: Instead, at most how many previews to show, evenly spread over the steps.
        caller_jobs: Jobs that its caller may have waiting and running; None for as many as the engine allows everyone.
    """

    caller: str = ""
    priority: int = DEFAULT_PRIORITY
    timeout_s: float = math.inf
    keep_trajectory: bool = False
    keep_lift_maps: bool = False
    preview_every: int = 0
    previews: int = 0
    caller_jobs: int | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """What waits for whoever computes.

    Attributes:
        jobs: How many jobs.
        rows: Their network rows of one step.
        work: Their network rows over all steps.
        deadline: When the first of them is worthless, in Unix time; None for never.
    """

    jobs: int
    rows: int
    work: int
    deadline: float | None = None


def new_id() -> str:
    """An id for a job: unlike any other, and not to be guessed."""
    return uuid.uuid4().hex


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the engine. Any thread may read it; only the engine's thread moves it on, but for
    its end at the deadline, and what stands below ``steps_taken`` is for that thread alone.

    Attributes:
        plan: What it comes to.
        ask: What its caller wants besides.
        source: The known picture, if there is one.
        catalog: Whose models it was planned for; None for the executor's own.
        saver: Gets its snapshots; None for a job that nobody resumes.
        sealer: Gets its end before anybody else hears of it, to write it down; None to tell it at once.
        resume: Where an earlier run of it had come to; None to begin at the first step.
        id: Unlike any other.
        channel: What it tells listeners.
        result: Resolves to the outcome, or to the error that ended the job.
        attempt: Which run it is; the first is 1.
        cancelled: Set from any thread; the engine drops the job at its next tick.
        submitted: When it came, on the monotonic clock.
        created: The same in Unix time.
        phase: Where it is.
        settled: Whether the engine is done with it: what it held is free.
        resumed_from: The network calls that an earlier run had made.
        started: When it left the queue.
        decoding: When its last step was taken.
        ended: When it reached its last phase.
        decided: Whether its end is decided: told, or in the sealer's hands.
        ending: The phase that it ends in, once that is decided.
        request: The id of the request that made it, for the log.
        watcher: Called when the engine is done with it.
        steps_taken: How far it had come then; before it runs, how far an earlier run had come.
        ran_s: Seconds that earlier runs of it took.
        saved: When its last snapshot was taken, on the monotonic clock.
        state: How far it is.
        noise: Where its noise comes from.
        pending: Noise that is being drawn for a step not yet taken.
        points: Its trajectory so far.
    """

    plan: Plan
    ask: Ask = field(default_factory=Ask)
    source: Source | None = None
    catalog: Catalog | None = None
    saver: Saver | None = None
    sealer: Sealer | None = None
    resume: Snapshot | None = None
    id: str = field(default_factory=new_id)
    channel: Channel = field(default_factory=Channel)
    result: "Future[Outcome]" = field(default_factory=Future)
    attempt: int = 1
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)
    created: float = field(default_factory=time.time)
    phase: Phase = Phase.QUEUED
    settled: bool = False
    resumed_from: int = 0
    started: float = 0.0
    decoding: float = 0.0
    ended: float = 0.0
    decided: bool = False
    ending: Phase | None = None
    request: str = field(default_factory=request_id)
    watcher: Callable[[], None] | None = None
    steps_taken: int = 0
    ran_s: float = 0.0
    saved: float = 0.0
    state: SamplerState | None = None
    noise: NoiseSource | None = None
    pending: "Future[Draw] | None" = None
    points: list[Point] = field(default_factory=list)
    _moving: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        """Mark the result as running: then only the engine can end it, and no two threads race to."""
        self.result.set_running_or_notify_cancel()
        if self.resume is not None:
            self.go_on(self.resume)

    def go_on(self, snapshot: Snapshot | None) -> None:
        """Begin where an earlier run had come to, or at the first step; before it is queued."""
        self.resume = snapshot
        self.resumed_from = self.steps_taken = 0 if snapshot is None else snapshot.index
        self.ran_s = 0.0 if snapshot is None else snapshot.ran_s

    @property
    def expression(self) -> Expression:
        """What to compose."""
        return self.plan.expression

    @property
    def params(self) -> SamplingParams:
        """How to sample."""
        return self.plan.params

    @property
    def parts(self) -> Parts:
        """Network rows that it needs at every step, by model and sample shape."""
        return self.plan.parts

    @property
    def caller(self) -> str:
        """Who asked."""
        return self.ask.caller

    @property
    def priority(self) -> int:
        """0 to 9."""
        return self.ask.priority

    @property
    def deadline(self) -> float:
        """When it is worthless, on the monotonic clock."""
        return self.submitted + self.ask.timeout_s

    @property
    def index(self) -> int:
        """Network calls made; any thread may ask."""
        state = self.state
        return self.steps_taken if state is None else state.index

    @property
    def preview_every(self) -> int:
        """Every how many steps listeners get a preview; 0 for never."""
        spread = -(-self.plan.steps // (self.ask.previews + 1)) if self.ask.previews else 0
        return self.ask.preview_every or spread

    @property
    def rows(self) -> int:
        """Network rows that it needs at every step."""
        return sum(self.parts.values())

    @property
    def left(self) -> int:
        """Network calls still to make."""
        return self.plan.calls - self.index

    @property
    def stepped(self) -> bool:
        """Whether every step is taken."""
        return self.left == 0

    @property
    def work(self) -> int:
        """Network rows still to compute."""
        return self.rows * self.left

    @property
    def weight(self) -> int:
        """Bytes that it holds while it waits."""
        held = 0 if self.resume is None else sum(tensor.nbytes for tensor in self.resume.tensors.values())
        return held + (0 if self.source is None else self.source.nbytes)

    @property
    def over(self) -> bool:
        """Whether it has reached its last phase."""
        return self.phase in {Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED}

    @property
    def size(self) -> int:
        """Bytes that a finished job holds: its pictures and its trajectory."""
        if self.phase is not Phase.COMPLETED:
            return 0
        outcome = self.result.result()
        points = sum(point.weights.nbytes + point.log_density.nbytes for point in outcome.trajectory)
        maps = 0 if outcome.lift_maps is None else outcome.lift_maps.nbytes
        return outcome.pictures.nbytes + points + maps

    def cancel(self) -> None:
        """Ask the engine to drop the job; harmless at any time and more than once."""
        self.cancelled = True

    def enter(self, phase: Phase) -> None:
        """Go on to a phase that is not the last, unless the job has ended."""
        with self._moving:
            if not self.over:
                self.phase = phase
                if phase is Phase.DECODING:
                    self.decoding = time.monotonic()

    def expire(self, error: Exception) -> None:
        """End the job from any thread, unless it has ended; the engine may be computing for it and settles it later."""
        self._tell(error)

    def end(self, how: Outcome | Exception) -> None:
        """The engine is done with the job: tell its end, unless that is decided, and let go of what it held."""
        self._tell(how)
        self.settle()

    def settle(self) -> None:
        """Let go of latents, noise and the known picture: what is kept of a job that is over is its answer."""
        self.settled = True
        self.source, self.state, self.noise, self.pending, self.points = None, None, None, None, []
        self.resume = self.saver = None

    def conclude(self, how: Outcome | Exception) -> None:
        """Tell the end of the job to all who wait for it, once."""
        with self._moving:
            if self.over:
                return
            self.ended = time.monotonic()
            # Whoever waits for the result must find the phase; whoever finds the phase first waits a moment for the
            # result.
            self.phase = self.ending = _last_phase(how)
        self._resolve(how)
        self.channel.publish(self.phase, how, last=True)

    def leave(self, why: Exception) -> None:
        """The job goes on elsewhere: who waits for it here gets the reason, and listeners hear no end."""
        self._resolve(why)
        self.channel.close()

    def _tell(self, how: Outcome | Exception) -> None:
        """Decide the end, unless it is: tell it, or hand it to the sealer."""
        with self._moving:
            if self.decided:
                return
            self.decided, self.ending = True, _last_phase(how)
            self.steps_taken = self.index
            sealer, self.sealer = self.sealer, None
        if sealer is None:
            self.conclude(how)
        else:
            sealer(how)

    def _resolve(self, how: Outcome | Exception) -> None:
        if isinstance(how, Exception):
            self.result.set_exception(how)
        else:
            self.result.set_result(how)


def _last_phase(how: Outcome | Exception) -> Phase:
    if isinstance(how, Exception):
        return Phase.CANCELLED if isinstance(how, CancelledJobError) else Phase.FAILED
    return Phase.COMPLETED
