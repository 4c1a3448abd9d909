"""What runs on the device: jobs in, jobs one step further out."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
import torch

from pipelines.catalog import Catalog
from pipelines.composition import Prompt, leaves
from pipelines.model import Condition, Model
from pipelines.sampler import NoiseSource, SamplerState, evaluate, finish, prepare, sample_shape, step
from service.engine.job import Job, Outcome, Point

_CACHED_CONDITIONS: Final = 1024

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LeastRecentlyUsed(Generic[K, V]):
    """A bounded cache that forgets what was not asked for longest."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """What is held under the key, made now if there is nothing."""
        if key in self._held:
            self._held.move_to_end(key)
        else:
            self._held[key] = make()
            if len(self._held) > self._size:
                self._held.popitem(last=False)
        return self._held[key]


class Executor:
    """Takes jobs through their states; called from the engine's thread alone.

    Args:
        catalog: Where the models are.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._conditions: LeastRecentlyUsed[Prompt, Condition] = LeastRecentlyUsed(_CACHED_CONDITIONS)

    def start(self, job: Job) -> None:
        """Encode the prompts, fix the course, draw z_T."""
        job.started = time.monotonic()
        models = self._models([job])
        shape = sample_shape(job.params, models[leaves(job.expression)[0].model])
        job.noise = NoiseSource(job.params, shape)
        job.state = prepare(job.expression, job.params, models, job.noise.draw(), self._encode)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Take one step of every job: one forward per model and sample shape, one superposition per shape."""
        groups: dict[Hashable, list[Job]] = {}
        for job in jobs:
            state = _state(job)
            groups.setdefault((state.z.shape[1:], state.z.device), []).append(job)
        for group in groups.values():
            states = [_state(job) for job in group]
            noise = [_noise(job) for job in group]
            moved = step(states, evaluate(states, self._models(group)), noise)
            for job, state in zip(group, moved, strict=True):
                job.state, job.pending = state, None
                if job.keep_trajectory:
                    job.points.append(_point(state))

    def complete(self, job: Job) -> Outcome:
        """Check, decode and bring to the host what a finished job drew."""
        samples = finish(_state(job))
        model = self._catalog.get(leaves(job.expression)[0].model)
        pictures = model.decode(samples.z).permute(0, 2, 3, 1).mul(255).round().to(torch.uint8)
        return Outcome(
            pictures=pictures.cpu().numpy(),
            log_density=samples.log_density.cpu().numpy(),
            mean_weights=samples.mean_weights.cpu().numpy(),
            clamp_rate=samples.clamp_rate.cpu().numpy(),
            trajectory=tuple(job.points),
            queued_s=job.started - job.submitted,
            run_s=time.monotonic() - job.started,
        )

    def _models(self, jobs: Sequence[Job]) -> Mapping[str, Model]:
        names = dict.fromkeys(leaf.model for job in jobs for leaf in leaves(job.expression))
        return {name: self._catalog.get(name) for name in names}

    def _encode(self, row: Prompt) -> Condition:
        return self._conditions.get(row, lambda: self._catalog.get(row.model).encode_prompts([row.text]))


def _state(job: Job) -> SamplerState:
    if job.state is None:
        raise RuntimeError(f"job {job.id} was never started")
    return job.state


def _noise(job: Job) -> torch.Tensor:
    """The job's noise for its next step, drawn once however often the step is tried.

    The last step adds none, so none is drawn for it.
    """
    state = _state(job)
    if job.noise is None or state.index == state.schedule.steps - 1:
        return torch.zeros_like(state.z)
    if job.pending is None:
        job.pending = job.noise.draw()
    return job.pending


def _point(state: SamplerState) -> Point:
    return Point(
        sigma=float(state.schedule.sigmas[state.index]),
        weights=np.array(state.weights.cpu()),
        log_density=np.array(state.log_q.cpu()),
    )
