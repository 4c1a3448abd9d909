"""What composing costs: the superposition step against a network's forward.

By components M and dimension D, one sample and eight; and against one row of a Stable-Diffusion-1.5-sized U-Net (random
weights, 64×64×4 latents) at the same M, as one forward of M + 1 rows.
"""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel

from benchmarks.harness import arguments, report, table
from pipelines.composition import And, Prompt
from pipelines.layout import rule_of
from pipelines.params import SamplingParams
from pipelines.superposition import superpose

COMPONENTS = (2, 4, 8)
DIMENSIONS = (256, 1024, 4096, 16384)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(act: Callable[[], object], repeats: int) -> float:
    """Median seconds of an act, the device waited for; the first of several does not count."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        act()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[-repeats:])


def one_step(components: int, dimension: int, batch: int) -> Callable[[], object]:
    """A superposition step of random fields."""
    expression = And(tuple(Prompt(str(i), "m") for i in range(components)))
    rule = rule_of(expression, [0] * components, SamplingParams(), batch).to(DEVICE)
    z, noise = torch.randn(2, batch, dimension, device=DEVICE)
    denoised = torch.randn(batch, components + 1, dimension, device=DEVICE)
    log_q = torch.zeros(batch, components, dtype=torch.float64, device=DEVICE)
    sigma, h, v = (torch.full((batch,), x, dtype=torch.float64, device=DEVICE) for x in (3.0, 4.0, 2.0))
    return lambda: superpose(z, log_q, denoised, noise, sigma, h, v, rule)


def main() -> None:
    """Measure, print, write."""
    given = arguments("composition", __doc__)
    numbers: dict[str, float] = {}
    rows = []
    for components in COMPONENTS:
        line: list[object] = [components]
        for dimension in DIMENSIONS:
            for batch in (1, 8):
                took = seconds(one_step(components, dimension, batch), 30)
                numbers[f"step M={components} D={dimension} B={batch}"] = took
                line.append(f"{took * 1e3:.2f}")
        rows.append(line)
    header = ["M", *(f"D {d}, B {b}" for d in DIMENSIONS for b in (1, 8))]
    text = "superposition step, ms\n\n" + table(header, rows)
    with torch.inference_mode():
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(DEVICE).eval()
        shares = []
        for components in COMPONENTS:
            count = components + 1
            x, text_rows = torch.randn(count, 4, 64, 64, device=DEVICE), torch.randn(count, 77, 768, device=DEVICE)
            level = torch.full((count,), 500.0, device=DEVICE)

            def forward(
                x: torch.Tensor = x, level: torch.Tensor = level, text_rows: torch.Tensor = text_rows
            ) -> object:
                return unet(x, level, text_rows)

            # Minutes for nine rows on two cores, and a hundred times what it is compared with: once is enough there.
            network = seconds(forward, given.repeats if DEVICE == "cuda" else 1)
            step = numbers[f"step M={components} D=16384 B=1"]
            numbers[f"forward SD-1.5 rows={count}"] = network
            shares.append(
                [components, f"{network * 1e3:.0f} ms", f"{step * 1e3:.2f} ms", f"{100 * step / network:.2f} %"]
            )
    text += "\n\nagainst a forward of a Stable-Diffusion-1.5-sized U-Net\n\n"
    text += table(["M", "forward, M + 1 rows", "step", "share"], shares)
    report("The cost of composition", text, numbers, given.out)


if __name__ == "__main__":
    main()
