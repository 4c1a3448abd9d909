"""How well each kernel samples OR and balanced AND of exact mixtures, by number of steps.

Two 5-mode Gaussian mixtures in 64 dimensions, σ from 14.6 to 0.03, no guidance, 4,000 samples. Printed: OR's sliced W2
to the true mixture (its floor: the same between two exact samples) and mean log-density; AND's true gap
√E(log q_1 − log q_2)², and mean log-density under the mixture.
"""

from collections.abc import Mapping

import torch

from benchmarks.harness import arguments, report, table
from pipelines.composition import Or, Prompt
from pipelines.kernel import Kernel
from pipelines.model import Model
from pipelines.params import SamplingParams
from tests.pipelines.mixtures import balanced, log_density, mixture, model, run, sliced_w2, union

KERNELS = (Kernel.EULER_MARUYAMA, Kernel.EXACT, Kernel.POSTERIOR, Kernel.CALIBRATED)
STEPS = (10, 20, 50, 200)
SAMPLES = 4000
A, B = Prompt("", "a"), Prompt("", "b")


def main() -> None:
    """Measure, print, write."""
    given = arguments("accuracy", __doc__)
    a, b = mixture(1), mixture(2)
    both = union(a, b)
    models: Mapping[str, Model] = {"a": model(a), "b": model(b)}
    truth, again = (both.sample(SAMPLES, torch.Generator().manual_seed(seed)) for seed in (5, 6))
    floor, level = sliced_w2(truth, again), float(log_density(both, truth).mean())
    numbers: dict[str, dict[str, float]] = {"truth": {"or_sliced_w2": floor, "or_log_density": level}}
    rows: list[list[object]] = [["exact samples", "", f"{floor:.3f}", f"{level:.1f}", "", ""]]
    for kernel in KERNELS:
        for steps in STEPS:
            params = SamplingParams(steps=steps, num_images=SAMPLES, kernel=kernel, guidance_scale=1.0)
            mixed = run(Or((A, B)), params, models)[-1].z
            equal = run(balanced((A, B)), params, models)[-2].z
            gap = log_density(a, equal) - log_density(b, equal)
            found = {
                "or_sliced_w2": sliced_w2(mixed, truth),
                "or_log_density": float(log_density(both, mixed).mean()),
                "and_gap": float(gap.square().mean().sqrt()),
                "and_log_density": float(log_density(both, equal).mean()),
            }
            numbers[f"{kernel} {steps}"] = found
            rows.append(
                [
                    kernel,
                    steps,
                    f"{found['or_sliced_w2']:.3f}",
                    f"{found['or_log_density']:.1f}",
                    f"{found['and_gap']:.2f}",
                    f"{found['and_log_density']:.1f}",
                ]
            )
    header = ["kernel", "steps", "OR: sliced W2", "OR: log p", "AND: gap", "AND: log p"]
    report("OR and AND of exact mixtures, D = 64", table(header, rows), numbers, given.out)


if __name__ == "__main__":
    main()
