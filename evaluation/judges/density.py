r"""How much better one caption explains a picture than another, measured on noise that the picture was not drawn with.

By the I-MMSE relation (Guo, Shamai & Verdú, *Mutual Information and Minimum Mean-Square Error in Gaussian Channels*,
2005),

    log q_a(x) − log q_b(x) = ∫ σ⁻² E( |x̂0_b(x + σε) − x|² − |x̂0_a(x + σε) − x|² ) d log σ

over the model's noise levels. The integral is taken by random levels, one from each of equal strata of log σ: unbiased
at any number of them. Two independent estimates of each picture give an unbiased square: E g g' = g².
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from pipelines.model import Model
from pipelines.networks import denoise


@torch.inference_mode()
def log_ratios(
    model: Model, z: Tensor, captions: tuple[Sequence[str], Sequence[str]], seeds: Sequence[int], *, levels: int
) -> Tensor:
    """Two independent estimates of log q_a − log q_b of each picture.

    Args:
        model: Whose densities.
        z: (B, …) clean samples.
        captions: For each picture what a says, and what b says.
        seeds: For each picture, of the noise; other streams than it was drawn with.
        levels: Noise levels of each estimate; each costs two network rows.

    Returns:
        (B, 2) float64, in nats.
    """
    low, high = log(model.card.sigma_min), log(model.card.sigma_max)
    width = (high - low) / levels
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    condition = model.encode_prompts([*captions[0], *captions[1]])
    found = torch.zeros(len(z), 2, dtype=torch.float64)
    for half in range(2):
        for stratum in range(levels):
            places = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
            sigma = (low + width * (stratum + places)).exp()
            noise = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z)
            noisy = z + sigma.to(z).reshape(-1, *([1] * (z.dim() - 1))) * noise
            estimates = denoise(model, torch.cat([noisy, noisy]), torch.cat([sigma, sigma]), condition)
            a, b = ((e - z).double().square().flatten(1).sum(1) for e in estimates.chunk(2))
            found[:, half] += width * (b - a) / sigma**2
    return found
