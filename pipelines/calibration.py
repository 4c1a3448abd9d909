"""Measuring a model's denoising error where no data are at hand: on what the model itself draws."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from pipelines.composition import Prompt
from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError, measure_denoising_error
from pipelines.model import Condition, Model
from pipelines.networks import collate, denoise
from pipelines.params import SamplingParams
from pipelines.sampler import sample

LEVELS: Final = 32
IMAGES: Final = 64
"""Samples that a model is calibrated on."""
STEPS: Final = 50
"""Steps that these samples are drawn in."""
FORWARD_ROWS: Final = 8
"""Rows of one forward while calibrating: few enough for a large model at its native size on one accelerator."""
_NAME: Final = "model"


def calibration_levels(model: Model) -> Tensor:
    """The levels to measure at: (32,) float64, equally spaced in log σ over what the model knows."""
    low, high = torch.tensor([model.card.sigma_min, model.card.sigma_max], dtype=torch.float64).log().tolist()
    return torch.linspace(low, high, LEVELS, dtype=torch.float64).exp()


def calibrate_on_samples(
    model: Model, clean: Tensor, condition: Condition, seed: int = 0, forward_rows: int = FORWARD_ROWS
) -> DenoisingError:
    """m(σ) on given clean samples with a condition row for each.

    Args:
        model: Whose error to measure.
        clean: (B, …) samples.
        condition: B rows.
        seed: Of the noise.
        forward_rows: How many rows one forward may take.
    """

    def denoised(z: Tensor, sigma: Tensor) -> Tensor:
        parts = []
        for i in range(0, len(z), forward_rows):
            rows = slice(i, i + forward_rows)
            own = {key: value[rows] for key, value in condition.items()}
            parts.append(denoise(model, z[rows], sigma[rows], own))
        return torch.cat(parts)

    generator = torch.Generator().manual_seed(seed)
    return measure_denoising_error(denoised, clean, calibration_levels(model), generator)


def calibrate_on_own_samples(
    model: Model,
    prompts: Sequence[str],
    *,
    images: int = IMAGES,
    steps: int = STEPS,
    seed: int = 0,
    forward_rows: int = FORWARD_ROWS,
) -> DenoisingError:
    """m(σ) on samples that the model draws without guidance, as many of each prompt.

    Drawn samples are a little easier to denoise than data, so the curve is a little low; it is still the model's own,
    where the Gaussian fallback knows nothing of it.
    """
    if not prompts:
        raise InvalidInputError("calibration needs at least one prompt; it may be empty", field=("prompts",))
    each = max(1, images // len(prompts))
    clean, conditions = [], []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(steps=steps, guidance_scale=1.0, seed=seed + i * each, num_images=each)
        clean.append(sample(Prompt(prompt, _NAME), params, {_NAME: model}, forward_rows=forward_rows).z)
        conditions.append((model.encode_prompts([prompt]), each))
    return calibrate_on_samples(model, torch.cat(clean), collate(conditions), seed, forward_rows)
