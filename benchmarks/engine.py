"""The engine under load, on the builtin model: balanced AND of two prompts, 25 steps, guidance 4, a picture each.

Side by side, in pictures a second, decoding included everywhere but in the limit:

    one by one   the way of the published scripts: one request after another, a forward a component and step
    diffusers    StableDiffusionPipeline, one prompt a call: two rows a step where the composition needs three
    plain loop   one request through `sample`: one batched forward a step, and no engine
    engine(n)    n requests at once; with --fast, in bfloat16 and channels last
    raw          the same rows through the network at the best batch size, and nothing else: the limit
"""

import time
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial

import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

from benchmarks.harness import alone, arguments, interleaved, medians, report, table
from benchmarks.sampler import EXPRESSION, GUIDANCE, PROMPTS, STEPS, expanded, one_by_one
from pipelines.catalog import Catalog
from pipelines.composition import Expression, leaves
from pipelines.entry import BUILTIN_FOLDER
from pipelines.model import Model
from pipelines.params import SamplingParams
from pipelines.plan import Plan, make_plan
from pipelines.sampler import sample
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.engine.scheduler import Limits

CROWDS = (1, 4, 16, 64)
FAST = (1, 16)
BATCHES = (48, 96, 192)
FORWARD_ROWS = 96
LIMITS = Limits(running_rows=192, caller_jobs=1000, waiting_jobs=1000)


def request(seed: int) -> SamplingParams:
    """One request of the uniform crowd."""
    return SamplingParams(steps=STEPS, guidance_scale=GUIDANCE, seed=seed)


def planned(catalog: Catalog, expression: Expression, params: SamplingParams) -> Plan:
    """The plan of a request to loaded models."""
    return make_plan(expression, params, {leaf.model: catalog.get(leaf.model).card for leaf in leaves(expression)})


def serve(catalog: Catalog, count: int) -> None:
    """Have ``count`` requests served at once, by an engine of their own."""
    plans = [planned(catalog, EXPRESSION, request(seed)) for seed in range(count)]
    with Engine(Executor(catalog, forward_rows=FORWARD_ROWS), LIMITS) as engine:
        wait([engine.submit(plan).result for plan in plans])


@torch.inference_mode()
def raw(model: Model, rows: int, batch: int) -> float:
    """Seconds for ``rows`` rows of the bare network in forwards of ``batch``."""
    network = model.networks[0]
    x = torch.randn(batch, *model.card.sample_shape(64, 64))
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


def main() -> None:
    """Measure, print, write."""
    given = arguments("engine", __doc__)
    text, speed = uniform(given.repeats)
    report("The engine under load", text, speed, given.out)


if __name__ == "__main__":
    main()
