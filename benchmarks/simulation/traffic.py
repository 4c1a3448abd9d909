"""Jobs as they come in the course of a day: night and noon, bursts, several callers and models."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.simulation.costs import Device
from service.engine.scheduler import DEFAULT_PRIORITY
from service.store.moves import Candidate

HEAVY: Final = "heavy"
LIGHT: Final = "light"


@dataclass(slots=True, eq=False)
class Job:
    """A job on its way.

    Attributes:
        candidate: What the order of claims depends on; its ``submitted`` is when the job came.
        parts: Rows of each step by model.
        steps: Steps in all.
        images: Pictures to decode.
        left: Steps still to take.
        started: When its first step began.
        ended: When its client could know of its end.
    """

    candidate: Candidate
    parts: dict[int, int]
    steps: int
    images: int
    left: int = field(init=False)
    started: float = math.nan
    ended: float = math.nan
    models: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is done of it yet."""
        self.left = self.steps
        self.models = frozenset(self.parts)

    def work(self, device: Device, row_s: float) -> float:
        """Seconds of a device that computes nothing but full batches of one model."""
        return self.steps * self.candidate.rows * row_s + self.images * device.decode_s

    @property
    def wait(self) -> float:
        """Seconds from coming to its end, as its client sees them."""
        return self.ended - self.candidate.submitted


@dataclass(frozen=True, slots=True)
class Mix:
    """What comes.

    Attributes:
        models: How many there are; the n-th is asked for in proportion to 1/n.
        two: Share of jobs that compose prompts of two models.
        heavy: Share of jobs of one caller, who sends them in bursts.
        light: Share of jobs of another, who sends one now and then.
        others: Callers of the rest.
        burst: Jobs of a burst, from and to.
        urgent: Share of jobs with a priority of 8; as many have 2.
        swing: How far the rate rises above its mean at noon, and falls below it at night, as a share of the mean.
    """

    models: int = 8
    two: float = 0.1
    heavy: float = 0.4
    light: float = 0.05
    others: int = 6
    burst: tuple[int, int] = (10, 60)
    urgent: float = 0.05
    swing: float = 0.2


def day(seed: int, mix: Mix, device: Device, workers: int, load: float, seconds: float) -> list[Job]:
    """The jobs of a day, first come first.

    Args:
        seed: Of what is random.
        mix: What comes.
        device: What a worker can do.
        workers: How many there are.
        load: Work that comes in a second, on the day's average, as a share of what the workers could do at best.
        seconds: How long the day is.
    """
    rng = random.Random(seed)
    row_s = device.step.best(device.rows)
    sample = [_job(rng, mix, "", 0, 0.0) for _ in range(2000)]
    rate = load * workers / (sum(job.work(device, row_s) for job in sample) / len(sample))
    singles, bursts = _arrivals(rng, rate * (1 - mix.heavy), mix.swing, seconds), _bursts(rng, rate, mix, seconds)
    light = mix.light / (1 - mix.heavy)
    names = [(LIGHT if rng.random() < light else f"caller {rng.randrange(mix.others)}", at) for at in singles]
    ordered = sorted([*names, *((HEAVY, at) for at in bursts)], key=lambda each: each[1])
    return [_job(rng, mix, caller, number, at) for number, (caller, at) in enumerate(ordered)]


def _arrivals(rng: random.Random, rate: float, swing: float, seconds: float) -> list[float]:
    """Poisson arrivals whose rate is lowest at both ends of the day."""
    now, times, highest = 0.0, [], rate * (1 + swing)
    while rate and (now := now + rng.expovariate(highest)) < seconds:
        if rng.random() * (1 + swing) < 1 - swing * math.cos(2 * math.pi * now / seconds):
            times.append(now)
    return times


def _bursts(rng: random.Random, rate: float, mix: Mix, seconds: float) -> list[float]:
    mean = sum(mix.burst) / 2
    starts = _arrivals(rng, rate * mix.heavy / mean, mix.swing, seconds)
    sizes = [rng.randint(*mix.burst) for _ in starts]
    # As fast as one client sends them.
    return [start + 0.01 * place for start, size in zip(starts, sizes, strict=True) for place in range(size)]


def _job(rng: random.Random, mix: Mix, caller: str, number: int, at: float) -> Job:
    models, weights = range(mix.models), [1 / (place + 1) for place in range(mix.models)]
    images, components = rng.choices((1, 2, 4), (8, 1, 1))[0], rng.randint(1, 5)
    chosen = rng.choices(models, weights, k=1 + (mix.models > 1 and components > 1 and rng.random() < mix.two))
    rows = (components + 1) * images
    parts = dict.fromkeys(chosen, rows)
    if len(parts) > 1:  # each with its unconditional row
        rows += images
        parts = {chosen[0]: rows - rows // 2, chosen[1]: rows // 2}
    priority = rng.choices((DEFAULT_PRIORITY, 8, 2), (1 - 2 * mix.urgent, mix.urgent, mix.urgent))[0]
    candidate = Candidate(f"{number:09}", caller, priority, at, rows)
    return Job(candidate, parts, rng.choices((5, 15, 25, 40, 60), (1, 2, 4, 2, 1))[0], images)


def again(jobs: Sequence[Job]) -> list[Job]:
    """The same jobs, not begun."""
    return [Job(job.candidate, job.parts, job.steps, job.images) for job in jobs]


def of_models(jobs: Sequence[Job], models: frozenset[int]) -> list[Job]:
    """The jobs whose first model is one of these, not begun."""
    return again([job for job in jobs if next(iter(job.parts)) in models])


def shares(jobs: Sequence[Job]) -> dict[int, int]:
    """Rows over all steps by model, the most asked for first."""
    total: dict[int, int] = {}
    for model, work in itertools.chain.from_iterable(
        ((model, rows * job.steps) for model, rows in job.parts.items()) for job in jobs
    ):
        total[model] = total.get(model, 0) + work
    return dict(sorted(total.items(), key=lambda each: -each[1]))
