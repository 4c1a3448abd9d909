"""The engine under load, on the builtin model: AND of two prompts, 25 steps, guidance 4, one picture a request.

Side by side, in pictures a second, decoding included everywhere but in the limit:

    one by one   the way of the published scripts: one request after another, a forward a component and step
    diffusers    StableDiffusionPipeline, one prompt a call: two rows a step where the composition needs three
    plain loop   one request through `sample`: one batched forward a step, and no engine
    engine(n)    n requests at once; with --fast, in bfloat16 and channels last
    raw          the same rows through the network at the best batch size, and nothing else: the limit

Then a mixed crowd: OR, AND and average of one to five components, 5 to 60 steps, two models, arriving at random. Its
limit is the time that the crowd's rows take in raw forwards at the best batch size; no request should wait longer than
twice what strict first come, first served would have made it wait, each request stepping with its own rows alone.
"""

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from functools import partial

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

from benchmarks.harness import alone, arguments, interleaved, medians, report, table
from benchmarks.sampler import GUIDANCE, PROMPTS, STEPS, expanded, one_by_one
from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Or, Prompt
from pipelines.entry import BUILTIN_FOLDER
from pipelines.layout import lay_out
from pipelines.model import Model
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.job import Job
from service.engine.scheduler import Limits

CROWDS = (1, 4, 16, 64)
FAST = (1, 16)
BATCHES = (48, 96, 192)
MIXED = 120
FORWARD_ROWS = 96
LIMITS = Limits(running_rows=192, caller_jobs=1000, waiting_jobs=1000)
STRETCHES = (2.0, math.inf)
EXPRESSION = And(tuple(Prompt(text, "shapes") for text in PROMPTS))
WORDS = ("a red circle", "a blue star", "a green square", "a yellow triangle", "a purple circle", "a star")


def request(seed: int) -> SamplingParams:
    """One request of the uniform crowd."""
    return SamplingParams(steps=STEPS, guidance_scale=GUIDANCE, seed=seed)


def serve(catalog: Catalog, count: int) -> None:
    """Have ``count`` requests served at once, by an engine of their own."""
    with Engine(Executor(catalog, forward_rows=FORWARD_ROWS), LIMITS) as engine:
        wait([engine.submit(EXPRESSION, request(seed)).result for seed in range(count)])


@torch.inference_mode()
def raw(model: Model, rows: int, batch: int) -> float:
    """Seconds for ``rows`` rows of the bare network in forwards of ``batch``."""
    network = model.networks[0]
    x = torch.randn(batch, *model.sample_shape(64, 64))
    timesteps = torch.full((batch,), 500.0)
    condition = expanded(model.encode_prompts([""]), batch)
    network(x, timesteps, **condition)
    start = time.perf_counter()
    for _ in range(max(1, rows // batch)):
        network(x, timesteps, **condition)
    return (time.perf_counter() - start) * rows / (batch * max(1, rows // batch))


def loaded() -> tuple[Catalog, Catalog, StableDiffusionPipeline]:
    """The models, exact and fast, and diffusers' pipeline of the same weights."""
    catalogs = Catalog.builtin(), Catalog.builtin(fast=True)
    for catalog in catalogs:
        for name in catalog.names:
            catalog.get(name)
    pipeline = StableDiffusionPipeline.from_pretrained(
        BUILTIN_FOLDER / "shapes", dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return *catalogs, pipeline


def uniform(repeats: int) -> tuple[str, dict[str, float]]:
    """The table of the uniform crowd, and pictures a second by way."""
    catalog, swift, pipeline = alone(loaded)
    model = catalog.get("shapes")
    ways: dict[str, Callable[[], object]] = {
        "one by one": lambda: model.decode(one_by_one(model, request(0))),
        "diffusers, one prompt": lambda: pipeline(
            PROMPTS[0], num_inference_steps=STEPS, guidance_scale=GUIDANCE, width=64, height=64
        ),
        "plain loop": lambda: model.decode(sample(EXPRESSION, request(0), {"shapes": model}).z),
        **{f"engine({n})": partial(serve, catalog, n) for n in CROWDS},
        **{f"engine({n}), --fast": partial(serve, swift, n) for n in FAST},
        **{f"raw({b})": partial(raw, model, 3 * STEPS * 16, b) for b in BATCHES},
    }
    seconds = medians(interleaved(ways, repeats))
    pictures = dict.fromkeys(ways, 1) | {f"raw({b})": 16 for b in BATCHES}
    pictures |= {f"engine({n})": n for n in CROWDS} | {f"engine({n}), --fast": n for n in FAST}
    speed = {name: pictures[name] / value for name, value in seconds.items()}
    best = max(value for name, value in speed.items() if name.startswith("raw"))
    rows = [
        [name, f"{value:.2f}", f"{value / speed['one by one']:.2f}×", f"{value / best:.2f}"]
        for name, value in speed.items()
    ]
    latency = seconds["engine(1)"] / seconds["plain loop"]
    text = table(["way", "pictures/s", "against one by one", "share of the limit"], rows)
    return f"{text}\n\nlatency of engine(1) against the plain loop: {latency:.3f}", speed


def a_crowd(rng: random.Random) -> list[tuple[float, Expression, SamplingParams]]:
    """Requests with their arrival times in seconds."""
    crowd: list[tuple[float, Expression, SamplingParams]] = []
    now = 0.0
    for seed in range(MIXED):
        terms = tuple(
            Prompt(rng.choice(WORDS), rng.choice(("shapes", "shapes-round"))) for _ in range(rng.randint(1, 5))
        )
        params = SamplingParams(steps=rng.randint(5, 60), guidance_scale=GUIDANCE, seed=seed)
        crowd.append((now, rng.choice((Or, And, Average))(terms), params))
        now += rng.expovariate(20)
    return crowd


def speed_alone(model: Model) -> tuple[float, dict[int, float]]:
    """Seconds a row of raw forwards at the best batch size; seconds of a step of one request alone, by its rows.

    The entry 0 is a step without its forward.
    """
    per_row = min(alone(partial(raw, model, 960, batch)) / 960 for batch in BATCHES)
    params = SamplingParams(steps=20, guidance_scale=1.0)
    steps = {}
    for rows in range(1, 7):
        expression = Average(tuple(Prompt(text, "shapes") for text in WORDS[:rows]))
        run = partial(sample, expression, params, {"shapes": model})
        steps[rows] = interleaved({"": run}, 1)[""][0] / params.steps
    steps[0] = max(0.0, steps[1] - alone(partial(raw, model, params.steps, 1)) / params.steps)
    return per_row, steps


def mixed(seed: int, stretch: float) -> dict[str, float]:
    """Serve one mixed crowd: its time against its rows' raw time, the worst wait against first come, first served."""
    catalog = alone(loaded)[0]
    models = {name: catalog.get(name) for name in catalog.names}
    crowd = a_crowd(random.Random(seed))
    layouts = [lay_out(expression, params, models)[0] for _, expression, params in crowd]
    work = [len(layout.rows) * params.steps for layout, (_, _, params) in zip(layouts, crowd, strict=True)]
    jobs: list[Job] = []
    # Both models have one architecture, so raw rows of one stand for rows of both. Machines change their pace within
    # minutes: it is taken before and after.
    model = catalog.get("shapes")
    before = speed_alone(model)
    limits = replace(LIMITS, stretch=stretch)
    with Engine(Executor(catalog, forward_rows=FORWARD_ROWS), limits) as engine:
        for together in (1, 8):  # a service that has seen requests before
            for name in ("shapes", "shapes-round"):
                seen = Average((Prompt(WORDS[0], name), Prompt(WORDS[1], name)))
                wait([engine.submit(seen, request(seed)).result for seed in range(together)])
        start = time.perf_counter()
        for at, expression, params in crowd:
            time.sleep(max(0.0, start + at - time.perf_counter()))
            jobs.append(engine.submit(expression, params))
        wait([job.result for job in jobs])
        took = time.perf_counter() - start
    after = speed_alone(model)
    limit = (before[0] + after[0]) / 2 * sum(work)
    step = {rows: (before[1][rows] + after[1][rows]) / 2 for rows in before[1]}
    # Strict first come, first served: each request alone on the device, a forward a model and step.
    free, worst, waits = 0.0, 0.0, []
    for (at, _, params), layout, job in zip(crowd, layouts, jobs, strict=True):
        forwards = Counter(row.model for row in layout.rows).values()
        free = max(free, at) + params.steps * (step[0] + sum(step[rows] - step[0] for rows in forwards))
        waits.append(job.ended - job.submitted)
        worst = max(worst, waits[-1] / (free - at))
    return {
        "seconds": took,
        "limit, seconds": limit,
        "share of the limit": limit / took,
        "mean wait, seconds": statistics.mean(waits),
        "worst wait against first come, first served": worst,
    }


def main() -> None:
    """Measure, print, write."""
    given = arguments("engine", __doc__)
    text, speed = uniform(given.repeats)
    crowds = [{stretch: mixed(seed, stretch) for stretch in STRETCHES} for seed in range(given.repeats)]
    numbers = {s: {key: statistics.median(c[s][key] for c in crowds) for key in crowds[0][s]} for s in STRETCHES}
    rows = [[key, *(f"{numbers[s][key]:.2f}" for s in STRETCHES)] for key in numbers[STRETCHES[0]]]
    header = ["", *(f"stretch {s:g}" for s in STRETCHES)]
    text += f"\n\nmixed crowd of {MIXED}, medians\n\n" + table(header, rows)
    report("The engine under load", text, {"uniform": speed, "mixed": numbers}, given.out)


if __name__ == "__main__":
    main()
