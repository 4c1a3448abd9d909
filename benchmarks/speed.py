"""What speed options bring, and what they change: rows a second of the bare network, and pixels against float32.

    float32          as models are loaded unless told otherwise
    channels last    the network's weights laid out channels last
    bfloat16         weights and arithmetic
    --fast           both, as the service's option has it
    … compiled       torch.compile, once for all sizes, with COMPILED=1 in the environment: it takes minutes for each;
                     how long is in the last column

Rows of 3 are one request of two prompts; 48 and 96 are a busy engine's. Pixels are of 32 pictures of AND, guidance 4,
25 steps, 0 to 255: the mean absolute difference, and the share of pixels that differ by more than 8.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks.engine import request
from benchmarks.harness import alone, arguments, interleaved, medians, report, table
from benchmarks.sampler import EXPRESSION, expanded
from pipelines.catalog import Catalog
from pipelines.entry import BUILTIN_FOLDER, Entry
from pipelines.model import Model
from pipelines.sampler import sample

ROWS = (3, 48, 96)
PICTURES = 32
VISIBLE = 8
WAYS = {
    "float32": Entry("shapes", BUILTIN_FOLDER / "shapes"),
    "channels last": Entry("shapes", BUILTIN_FOLDER / "shapes", channels_last=True),
    "bfloat16": Entry("shapes", BUILTIN_FOLDER / "shapes", dtype="bfloat16"),
    "--fast": Entry("shapes", BUILTIN_FOLDER / "shapes", dtype="bfloat16", channels_last=True),
}
COMPILED = {f"{name}, compiled": replace(entry, compile=True) for name, entry in WAYS.items()}


def forward(model: Model, rows: int) -> Callable[[], object]:
    """One forward of so many rows."""
    z = torch.randn(rows, *model.card.sample_shape(model.card.width, model.card.height))
    levels, condition = torch.ones(rows, dtype=torch.float64), expanded(model.encode_prompts([""]), rows)
    return lambda: model.predict_noise(z, levels, condition)


def pictures(model: Model) -> torch.Tensor:
    """Pictures of AND, one seed each, in 0 to 255."""
    drawn = [sample(EXPRESSION, request(seed), {"shapes": model}).z for seed in range(PICTURES)]
    return torch.cat([model.decode(z) for z in drawn]) * 255


def main() -> None:
    """Measure, print, write."""
    given = arguments("speed", __doc__)
    models, loading = {}, {}
    for name, entry in (WAYS | COMPILED if os.environ.get("COMPILED") else WAYS).items():
        start = time.perf_counter()
        models[name] = alone(partial(Catalog([entry], "cpu").get, "shapes"))
        loading[name] = time.perf_counter() - start
    exact = alone(partial(pictures, models["float32"]))
    numbers: dict[str, dict[str, float]] = {name: {} for name in models}
    for rows in ROWS:
        ways = {name: alone(partial(forward, model, rows)) for name, model in models.items()}
        seconds = medians(interleaved(ways, 3 * given.repeats))
        for name, value in seconds.items():
            numbers[name][f"rows/s at {rows}"] = rows / value
    for name, model in models.items():
        gap = (alone(partial(pictures, model)) - exact).abs()
        numbers[name]["mean difference"] = float(gap.mean())
        numbers[name][f"over {VISIBLE}, %"] = 100 * float((gap > VISIBLE).float().mean())
        numbers[name]["load, s"] = loading[name]
    columns = list(numbers["float32"])
    lines = [[name, *(f"{values[c]:.3g}" for c in columns)] for name, values in numbers.items()]
    report("Speed options", table(["", *columns], lines), numbers, given.out)


if __name__ == "__main__":
    main()
