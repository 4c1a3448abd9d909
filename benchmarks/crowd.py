"""A mixed crowd: OR, AND and average of one to five components, 5 to 60 steps, two models, arriving at random.

Its limit is what the crowd's rows take in raw forwards of 96 and nothing else. No request should wait longer than twice
what strict first come, first served would have made it wait, each request stepping with its own rows alone.

Shared machines change their pace by half within a minute. So time is counted in raw forwards of 96 rows as they are at
that moment: the engine's thread takes one every two seconds, and the time between two of them is divided by their mean.
"""

import math
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from functools import partial

import torch

from benchmarks.engine import FORWARD_ROWS, LIMITS, planned, request
from benchmarks.harness import alone, arguments, report, table
from benchmarks.sampler import GUIDANCE, expanded
from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Or, Prompt
from pipelines.model import Model
from pipelines.networks import denoise
from pipelines.params import SamplingParams
from pipelines.plan import Plan
from pipelines.sampler import sample
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.job import Job

CROWD = 120
STRETCHES = (2.0, math.inf)
MODELS = ("shapes", "shapes-round")
WORDS = ("a red circle", "a blue star", "a green square", "a yellow triangle", "a purple circle", "a star")
PROBE_ROWS = 96
PROBE_EVERY_S = 2.0

Requests = list[tuple[float, Expression, SamplingParams]]


class Clock:
    """Time in raw forwards of one network, by probes: (begin, end) of each."""

    def __init__(self, model: Model) -> None:
        self._network = model.networks[0]
        self._x = torch.randn(PROBE_ROWS, *model.card.sample_shape(model.card.width, model.card.height))
        self._timesteps = torch.full((PROBE_ROWS,), 500.0)
        self._condition = expanded(model.encode_prompts([""]), PROBE_ROWS)
        self._probes: list[tuple[float, float]] = []

    @torch.inference_mode()
    def probe(self) -> None:
        """Take one forward."""
        begin = time.monotonic()
        self._network(self._x, self._timesteps, **self._condition)
        self._probes.append((begin, time.monotonic()))

    @property
    def due(self) -> bool:
        """Whether it is time for the next probe."""
        return time.monotonic() - self._probes[-1][1] > PROBE_EVERY_S

    def between(self, start: float, end: float) -> float:
        """Forwards that the time between two moments was worth, the probes' own not counted."""
        total = 0.0
        for (begin, before), (after, finish) in zip(self._probes, self._probes[1:], strict=False):
            span = min(after, end) - max(before, start)
            total += max(0.0, span) / ((before - begin + finish - after) / 2)
        return total


class Probing(Executor):
    """An executor that probes between steps."""

    clock: Clock | None = None

    def advance(self, jobs: Sequence[Job]) -> None:
        """Step, and probe if it is time."""
        super().advance(jobs)
        if self.clock is not None and self.clock.due:
            self.clock.probe()


def a_crowd(rng: random.Random) -> Requests:
    """Requests with their arrival times in seconds."""
    crowd: Requests = []
    now = 0.0
    for seed in range(CROWD):
        terms = tuple(Prompt(rng.choice(WORDS), rng.choice(MODELS)) for _ in range(rng.randint(1, 5)))
        params = SamplingParams(steps=rng.randint(5, 60), guidance_scale=GUIDANCE, seed=seed)
        crowd.append((now, rng.choice((Or, And, Average))(terms), params))
        now += rng.expovariate(20)
    return crowd


def steps_alone(model: Model) -> dict[int, float]:
    """Forwards that a step of one request alone is worth, by its rows; the entry 0 is a step without its forward."""
    clock = Clock(model)
    params = SamplingParams(steps=20, guidance_scale=1.0)
    steps = {}
    for rows in range(1, len(WORDS) + 1):
        expression = Average(tuple(Prompt(text, "it") for text in WORDS[:rows]))
        sample(expression, params, {"it": model})
        clock.probe()
        start = time.monotonic()
        sample(expression, params, {"it": model})
        end = time.monotonic()
        clock.probe()
        steps[rows] = clock.between(start, end) / params.steps
    # What is not of the forward is in both of two, and so is what their difference does not grow by.
    z, levels = torch.randn(1, *model.card.sample_shape(64, 64)), torch.ones(1, dtype=torch.float64)
    condition = model.encode_prompts([""])
    clock.probe()
    start = time.monotonic()
    for _ in range(params.steps):
        denoise(model, z, levels, condition)
    end = time.monotonic()
    clock.probe()
    steps[0] = max(0.0, steps[1] - clock.between(start, end) / params.steps)
    return steps


def first_come_first_served(plans: Sequence[Plan], arrivals: Sequence[float], model: Model) -> list[float]:
    """How long each request would wait, in forwards, were each alone on the device, one after another."""
    step = alone(partial(steps_alone, model))
    waits, free = [], 0.0
    for plan, arrival in zip(plans, arrivals, strict=True):
        forwards = plan.parts.values()
        free = max(free, arrival) + plan.steps * (step[0] + sum(step[rows] - step[0] for rows in forwards))
        waits.append(free - arrival)
    return waits


def serve(seed: int, stretch: float) -> dict[str, float]:
    """Serve one crowd: its share of the limit, the waits against first come, first served."""
    catalog = Catalog.builtin()
    for name in catalog.names:
        alone(partial(catalog.get, name))
    models = {name: catalog.get(name) for name in catalog.names}
    crowd = a_crowd(random.Random(seed))
    plans = [planned(catalog, expression, params) for _, expression, params in crowd]
    work = sum(plan.work for plan in plans)
    # Both models have one architecture, so rows of one stand for rows of both.
    clock = alone(partial(Clock, models[MODELS[0]]))
    executor = Probing(catalog, forward_rows=FORWARD_ROWS)
    jobs: list[Job] = []
    with Engine(executor, replace(LIMITS, stretch=stretch)) as engine:
        for together in (1, 8):  # a service that has seen requests before
            for name in MODELS:
                seen = Average((Prompt(WORDS[0], name), Prompt(WORDS[1], name)))
                wait([engine.submit(planned(catalog, seen, request(seed))).result for seed in range(together)])
        alone(clock.probe)
        executor.clock = clock
        start = time.monotonic()
        for (at, _, _), plan in zip(crowd, plans, strict=True):
            time.sleep(max(0.0, start + at - time.monotonic()))
            jobs.append(engine.submit(plan))
        wait([job.result for job in jobs])
        end = time.monotonic()
    alone(clock.probe)
    waits = [clock.between(job.submitted, job.ended) for job in jobs]
    arrivals = [clock.between(start, job.submitted) for job in jobs]
    strict = first_come_first_served(plans, arrivals, models[MODELS[0]])
    return {
        "seconds": end - start,
        "share of the limit": work / PROBE_ROWS / clock.between(start, end),
        "mean wait, seconds": statistics.mean(job.ended - job.submitted for job in jobs),
        "worst wait against first come, first served": max(ours / its for ours, its in zip(waits, strict, strict=True)),
    }


def main() -> None:
    """Measure, print, write."""
    given = arguments("crowd", __doc__)
    crowds = [{stretch: serve(seed, stretch) for stretch in STRETCHES} for seed in range(given.repeats)]
    numbers = {s: {key: statistics.median(c[s][key] for c in crowds) for key in crowds[0][s]} for s in STRETCHES}
    rows = [[key, *(f"{numbers[s][key]:.2f}" for s in STRETCHES)] for key in numbers[STRETCHES[0]]]
    text = table(["", *(f"stretch {s:g}" for s in STRETCHES)], rows)
    report(f"A mixed crowd of {CROWD}, medians of {given.repeats}", text, crowds, given.out)


if __name__ == "__main__":
    main()
