"""One request through the plain sampler: balanced AND of two prompts, 25 steps, guidance on, one picture and sixteen.

Three ways side by side:

    ours        one batched forward a step over all rows, one Gram-matrix step
    one by one  the way of the published scripts: a forward for each component and for the unconditional branch, then
                Proposition 6 for two components, in a plain loop
    raw         the same rows through the network and nothing else: the limit
"""

import math
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.harness import alone, arguments, interleaved, medians, report, table
from pipelines.catalog import Catalog
from pipelines.composition import And, Method, Prompt
from pipelines.draws import NoiseSource
from pipelines.model import Condition, Model
from pipelines.params import SamplingParams
from pipelines.plan import make_plan
from pipelines.sampler import sample
from pipelines.schedule import make_schedule

PROMPTS = ("a red circle", "a blue star")
STEPS = 25
GUIDANCE = 4.0
BATCHES = (1, 16)
EXPRESSION = And(tuple(Prompt(text, "shapes") for text in PROMPTS), method=Method.BALANCED)


def expanded(condition: Condition, rows: int) -> Condition:
    """One row's condition for many rows."""
    return {key: value.expand(rows, *value.shape[1:]) for key, value in condition.items()}


def one_by_one(model: Model, params: SamplingParams) -> torch.Tensor:
    """Proposition 6 for M = 2 with guidance, written as a script would: three forwards a step."""
    conditions = [expanded(model.encode_prompts([text]), params.num_images) for text in (*PROMPTS, "")]
    plan = make_plan(EXPRESSION, params, {"shapes": model.card})
    schedule = make_schedule(plan, {"shapes": model})
    source = NoiseSource(params, plan.shape)
    z = source.draw().normals * float(schedule.sigmas[0])
    for index in range(STEPS):
        sigma, h, v, _ = schedule.at(index)
        levels = torch.full((len(z),), sigma)
        one, two, free = (model.predict_noise(z, levels, c) * (-h / sigma) for c in conditions)
        noise = source.draw().normals * math.sqrt(v)
        difference = one - two
        squares = ((one**2).sum((1, 2, 3)) - (two**2).sum((1, 2, 3))) / 2
        base = free + GUIDANCE * (two - free) + noise
        kappa = (squares - (base * difference).sum((1, 2, 3))) / (GUIDANCE * (difference**2).sum((1, 2, 3)))
        mixed = two + kappa[:, None, None, None] * difference
        z = z + free + GUIDANCE * (mixed - free) + noise
    return z


def ways_of(model: Model, images: int) -> dict[str, Callable[[], object]]:
    """The three ways of so many pictures, once it is seen that the first two draw the same."""
    models = {"shapes": model}
    params = SamplingParams(steps=STEPS, guidance_scale=GUIDANCE, seed=1, num_images=images)
    torch.testing.assert_close(sample(EXPRESSION, params, models).z, one_by_one(model, params), rtol=0, atol=0.05)
    z = (
        NoiseSource(params, model.card.sample_shape(model.card.width, model.card.height))
        .draw()
        .normals.repeat(3, 1, 1, 1)
    )
    levels = torch.ones(len(z), dtype=torch.float64)
    condition = expanded(model.encode_prompts([""]), len(z))

    def raw() -> None:
        for _ in range(STEPS):
            model.predict_noise(z, levels, condition)

    return {
        "ours": lambda: sample(EXPRESSION, params, models),
        "one by one": lambda: one_by_one(model, params),
        "raw": raw,
    }


def main() -> None:
    """Measure, print, write."""
    given = arguments("sampler", __doc__)
    model = alone(lambda: Catalog.builtin().get("shapes"))
    numbers, rows = {}, []
    for images in BATCHES:
        ways = alone(partial(ways_of, model, images))
        seconds = medians(interleaved(ways, given.repeats))
        numbers[images] = seconds
        rows.append(
            [
                images,
                *(f"{seconds[name] * 1e3:.0f} ms" for name in ways),
                f"{seconds['one by one'] / seconds['ours']:.2f}×",
                f"{seconds['raw'] / seconds['ours']:.2f}",
            ]
        )
    header = ["pictures", "ours", "one by one", "raw forwards", "ours is faster by", "ours ÷ limit"]
    report("AND of two prompts, 25 steps, guidance 4, model shapes", table(header, rows), numbers, given.out)


if __name__ == "__main__":
    main()
