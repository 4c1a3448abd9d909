r"""Feynman–Kac particles: K samples for one picture, reweighted so that they follow the expression's own density.

A step's proposal N(d; δ̃, v) follows a mix of scores. For a mixture that is exact; for a product, a soft AND or a NOT
the mix is not the score of the noised target. With the target π_σ ∝ exp ℓ(·, σ), where ℓ is the root's log-density,
the weight of a step d is

    Δlog w = Δℓ + log N(d; 0, h) − log N(d; δ̃, v),

exact at any step size up to the estimator of ℓ. Where the weights have become uneven, particles are resampled within
their group.

References:
    Feynman–Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts (Skreta et al., 2025),
    https://arxiv.org/abs/2503.02819. Systematic resampling: Kitagawa, J. Comput. Graph. Stat. 1996.
"""

from typing import Final

import torch
from torch import Tensor

THRESHOLD: Final = 0.5
"""Particles are resampled where the effective sample size falls below this share of their number."""


def effective_size(log_weights: Tensor) -> Tensor:
    """(Σ w)² / Σ w² of each group, from 1 to K.

    Args:
        log_weights: (G, K), unnormalised.
    """
    weights = log_weights.softmax(1)
    return 1 / weights.square().sum(1)


def systematic(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ancestors by systematic resampling: (G, K) int64 indices into the group, in ascending order.

    Particle k is drawn ⌊K w_k⌋ or ⌈K w_k⌉ times.

    Args:
        log_weights: (G, K), unnormalised.
        uniforms: (G,) in [0, 1), one for each group.
    """
    count = log_weights.shape[1]
    edges = log_weights.softmax(1).cumsum(1)
    marks = (torch.arange(count, device=edges.device) + uniforms.to(edges).unsqueeze(1)) / count
    # Rounding may leave the last edge below the last mark.
    return torch.searchsorted(edges, marks).clamp(max=count - 1)


def resample(log_weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Resample the groups whose effective sample size is below the threshold; no value is read back to the host.

    Args:
        log_weights: (G, K), unnormalised.
        uniforms: (G,) in [0, 1).

    Returns:
        Ancestors, (G, K) int64, the particles themselves where a group stays; log-weights, 0 where it was resampled.
    """
    count = log_weights.shape[1]
    uneven = (effective_size(log_weights) < THRESHOLD * count).unsqueeze(1)
    stay = torch.arange(count, device=log_weights.device).expand_as(log_weights)
    ancestors = torch.where(uneven, systematic(log_weights, uniforms), stay)
    return ancestors, torch.where(uneven, 0.0, log_weights)


def pick(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """One particle of each group, drawn by its weight: (G,) int64.

    Args:
        log_weights: (G, K), unnormalised.
        uniforms: (G,) in [0, 1).
    """
    edges = log_weights.softmax(1).cumsum(1)
    return torch.searchsorted(edges, uniforms.to(edges).unsqueeze(1)).squeeze(1).clamp(max=edges.shape[1] - 1)


def survivors(lineage: Tensor) -> Tensor:
    """How many different first particles the particles of each group descend from: (G,) int64.

    Args:
        lineage: (G, K), for each particle the index of its first ancestor.
    """
    ordered = lineage.sort(1).values
    return 1 + (ordered.diff(dim=1) != 0).sum(1)
