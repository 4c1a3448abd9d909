"""A worker's device: jobs step together, a step's time depends on the rows of each model in it.

Jobs join between two steps. Between two changes of who runs all steps take the same time, so these are one event.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from typing import Final

from benchmarks.simulation.costs import Device
from benchmarks.simulation.loop import Loop
from benchmarks.simulation.traffic import Job

_SLACK: Final = 1e-9


class Doing(Enum):
    """What a device does."""

    NOTHING = auto()
    LOADING = auto()
    COMPUTING = auto()


class Worker:
    """A device and the jobs on it.

    Args:
        loop: The time.
        device: What it can do.
        table: Seconds of a step by rows.
        done: Called with the jobs that are over, as soon as they are.
        does: Called when it does something else than before: before, now.
        warm: The models that it has loaded, the one used longest ago first.
        started: Called with a job whose first step begins.
    """

    def __init__(
        self,
        loop: Loop,
        device: Device,
        table: Sequence[float],
        done: Callable[["Worker", list[Job]], None],
        does: Callable[[Doing, Doing], None],
        warm: Iterable[int] = (),
        started: Callable[[Job], None] | None = None,
    ) -> None:
        self._loop, self._device, self._table = loop, device, table
        self._done, self._does, self._started = done, does, started
        self._warm: OrderedDict[int, None] = OrderedDict.fromkeys(warm)
        self._running: list[Job] = []
        self._joining: list[Job] = []
        self._doing = Doing.NOTHING
        # The steps that are being taken: when they began, what one takes, how many, and which event ends them.
        self._began, self._step_s, self._steps, self._event = 0.0, 0.0, 0, 0
        self._stepping = False
        self.rows = 0
        self.loads = 0

    @property
    def room(self) -> int:
        """Rows that could run besides."""
        return self._device.rows - self.rows

    @property
    def idle(self) -> bool:
        """Whether it has no job."""
        return not self.rows

    @property
    def fill(self) -> float:
        """How long a step takes now, as a share of one with a full batch of one model; may be above 1."""
        rows: dict[int, int] = {}
        for job in (*self._running, *self._joining):
            for model, part in job.parts.items():
                rows[model] = rows.get(model, 0) + part
        return sum(self._table[part] for part in rows.values()) / self._table[-1]

    @property
    def jobs(self) -> int:
        """How many it has."""
        return len(self._running) + len(self._joining)

    def patience(self, mixed_s: float, cold_s: float) -> Callable[[frozenset[int]], float]:
        """How long jobs are left to others, by the models that they need.

        Args:
            mixed_s: Where it has them loaded, but computes with others at the moment; half of it where with one of two.
            cold_s: Where it has not.
        """
        used = {model for job in (*self._running, *self._joining) for model in job.models}
        loaded, most = self._warm.keys(), self._device.models

        def left_s(models: frozenset[int]) -> float:
            if models <= used:
                return 0.0
            if loaded >= models:
                return mixed_s * len(models - used) / len(models) if used else 0.0
            return cold_s if len(used | models) <= most else math.inf

        return left_s

    def join(self, jobs: Iterable[Job]) -> None:
        """Jobs come, and run from the next step on."""
        for job in jobs:
            self._joining.append(job)
            self.rows += job.candidate.rows
        if self._doing is Doing.NOTHING:
            self._begin()
        elif self._stepping:
            self._cut()

    def _cut(self) -> None:
        """End the steps that are being taken after the one that is under way."""
        passed = (self._loop.now - self._began) / self._step_s
        steps = max(1, math.ceil(passed - _SLACK))
        if steps < self._steps:
            self._steps = steps
            self._event += 1
            self._loop.at(max(self._loop.now, self._began + steps * self._step_s), self._stepped, self._event)

    def _begin(self) -> None:
        """Take in who joins, then step."""
        joining, self._joining = self._joining, []
        self._running += joining
        cold = sum(self._use(job.models) for job in joining)
        if cold and self._device.load_s:
            self._do(Doing.LOADING)
            self._loop.after(cold * self._device.load_s, self._begin)
            return
        if not self._running:
            self._do(Doing.NOTHING)
            return
        self._do(Doing.COMPUTING)
        rows: dict[int, int] = {}
        for job in self._running:
            if math.isnan(job.started):
                job.started = self._loop.now
                if self._started is not None:
                    self._started(job)
            for model, part in job.parts.items():
                rows[model] = rows.get(model, 0) + part
        self._began, self._stepping = self._loop.now, True
        self._step_s = sum(self._table[part] for part in rows.values())
        self._steps = min(job.left for job in self._running)
        self._event += 1
        self._loop.after(self._steps * self._step_s, self._stepped, self._event)

    def _stepped(self, event: int) -> None:
        if event != self._event:
            return
        self._stepping = False
        for job in self._running:
            job.left -= self._steps
        over = [job for job in self._running if not job.left]
        self._running = [job for job in self._running if job.left]
        images = sum(job.images for job in over)
        if images and self._device.decode_s:
            self._loop.after(images * self._device.decode_s, self._decoded, over)
        else:
            self._decoded(over)

    def _decoded(self, over: list[Job]) -> None:
        self.rows -= sum(job.candidate.rows for job in over)
        if over:
            self._done(self, over)
        self._begin()

    def _use(self, models: frozenset[int]) -> int:
        """Have models loaded; how many were not."""
        cold = 0
        for model in models:
            if model not in self._warm:
                cold += 1
                self._evict()
            self._warm[model] = None
        for model in models:
            self._warm.move_to_end(model)
        self.loads += cold
        return cold

    def _evict(self) -> None:
        used = {model for job in self._running for model in job.models}
        while len(self._warm) >= self._device.models:
            model = next((each for each in self._warm if each not in used), None)
            if model is None:
                return
            del self._warm[model]

    def _do(self, what: Doing) -> None:
        if what is not self._doing:
            before, self._doing = self._doing, what
            self._does(before, what)
