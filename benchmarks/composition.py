"""What composing costs: the superposition step against a network's forward.

By leaves M and dimension D, one sample and eight: balanced AND, and of 8 leaves also the flat soft AND and a nested
expression of all kinds of operators, timed in turn. And against one row of a Stable-Diffusion-1.5-sized U-Net (random
weights, 64×64×4 latents) at the same M, as one forward of M + 1 rows.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from diffusers import UNet2DConditionModel

from benchmarks.harness import arguments, report, table
from pipelines.composition import And, AtLeast, Average, Expression, Method, Not, Or, Prompt, Xor, leaves
from pipelines.mixing import compile_program
from pipelines.params import SamplingParams
from pipelines.superposition import Course, Rule, superpose

COMPONENTS = (2, 4, 8)
DIMENSIONS = (256, 1024, 4096, 16384)
BATCHES = (1, 8)
REPEATS = 30
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def flat(count: int, method: Method) -> Expression:
    """AND of so many prompts."""
    return And(tuple(Prompt(str(i), "m") for i in range(count)), method=method)


def nested() -> Expression:
    """Eight leaves under every kind of operator, four operators deep at most."""
    a, b, c, d, e, f, g, h = (Prompt(str(i), "m") for i in range(8))
    return Or((And((a, Not(b))), Xor((c, d)), And((AtLeast(1, (e, Not(f))), Average((g, Not(h)))))))


EIGHT: Mapping[str, Expression] = {
    "soft AND": flat(8, Method.SOFT),
    "balanced AND": flat(8, Method.BALANCED),
    "nested": nested(),
}


def seconds(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, taken in turn, the device waited for; the first of several does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + (repeats > 1)):
        for name, act in ways.items():
            start = time.perf_counter()
            act()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(series[-repeats:]) for name, series in times.items()}


def one_step(expression: Expression, dimension: int, batch: int) -> Callable[[], object]:
    """A superposition step of random fields."""
    count = len(leaves(expression))
    program = compile_program(expression, [0] * count)
    rule = Rule.join([(program, batch, SamplingParams().guidance_scale)], DEVICE)
    z, noise = torch.randn(2, batch, dimension, device=DEVICE)
    predicted = torch.randn(batch, count + 1, dimension, device=DEVICE)
    log_q = torch.zeros(batch, count + 1, dtype=torch.float64, device=DEVICE)
    course = Course(*(torch.full((batch,), x, dtype=torch.float64, device=DEVICE) for x in (3.0, 4.0, 2.0, 0.0)))
    return lambda: superpose(z, log_q, predicted, noise, course, rule)


def balanced_steps(numbers: dict[str, float]) -> str:
    """The table of balanced AND's step by leaves, dimension and batch."""
    rows = []
    for components in COMPONENTS:
        line: list[object] = [components]
        for dimension in DIMENSIONS:
            for batch in BATCHES:
                way = {"step": one_step(flat(components, Method.BALANCED), dimension, batch)}
                took = seconds(way, REPEATS)["step"]
                numbers[f"step M={components} D={dimension} B={batch}"] = took
                line.append(f"{took * 1e3:.2f}")
        rows.append(line)
    return table(["M", *(f"D {d}, B {b}" for d in DIMENSIONS for b in BATCHES)], rows)


def steps_of_eight(numbers: dict[str, float]) -> str:
    """The table of steps of 8 leaves, flat and nested, side by side."""
    rows = []
    for dimension in DIMENSIONS:
        for batch in BATCHES:
            took = seconds({name: one_step(e, dimension, batch) for name, e in EIGHT.items()}, REPEATS)
            numbers |= {f"step {name} D={dimension} B={batch}": value for name, value in took.items()}
            ratios = (took["nested"] / took[name] for name in ("soft AND", "balanced AND"))
            rows.append(
                [dimension, batch, *(f"{value * 1e3:.2f}" for value in took.values()), *(f"{r:.2f}" for r in ratios)]
            )
    return table(["D", "B", *EIGHT, "nested ÷ soft AND", "nested ÷ balanced AND"], rows)


@torch.inference_mode()
def shares(numbers: dict[str, float], repeats: int) -> str:
    """The table of balanced AND's step against a network's forward."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(DEVICE).eval()
    rows = []
    for components in COMPONENTS:
        count = components + 1
        x, text_rows = torch.randn(count, 4, 64, 64, device=DEVICE), torch.randn(count, 77, 768, device=DEVICE)
        level = torch.full((count,), 500.0, device=DEVICE)

        def forward(x: torch.Tensor = x, level: torch.Tensor = level, text_rows: torch.Tensor = text_rows) -> object:
            return unet(x, level, text_rows)

        # Minutes for nine rows on two cores, and a hundred times what it is compared with: once is enough there.
        network = seconds({"forward": forward}, repeats if DEVICE == "cuda" else 1)["forward"]
        step = numbers[f"step M={components} D=16384 B=1"]
        numbers[f"forward SD-1.5 rows={count}"] = network
        rows.append([components, f"{network * 1e3:.0f} ms", f"{step * 1e3:.2f} ms", f"{100 * step / network:.2f} %"])
    return table(["M", "forward, M + 1 rows", "step", "share"], rows)


def main() -> None:
    """Measure, print, write."""
    given = arguments("composition", __doc__)
    numbers: dict[str, float] = {}
    text = "\n\n".join(
        [
            "step of a balanced AND, ms",
            balanced_steps(numbers),
            "step of 8 leaves, ms",
            steps_of_eight(numbers),
            "against a forward of a Stable-Diffusion-1.5-sized U-Net",
            shares(numbers, given.repeats),
        ]
    )
    report("The cost of composition", text, numbers, given.out)


if __name__ == "__main__":
    main()
