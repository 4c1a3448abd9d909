r"""Painting on a known picture: image-to-image, inpainting, and the density of a picture that is there already.

All three are the sampler's own step with other inputs. Where a mask keeps the picture, each component's estimate x̂0 is
the known value itself, as it is for whoever knows the answer, E[x_0 | z_t, x_0 = x] = x; and the noise has just the
variance with which z_s is distributed as the forward process has it, N(x, σ_s²). The last step lands on x; and since
components agree there, weights and log-density ratios are those of the painted part, given the kept one.

For the density of a picture all of it is kept, but the components answer for themselves: z goes down the posterior's
path, whose law is the forward process's, and the Itô estimator reads off what each component makes of every step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.model import Condition


@dataclass(frozen=True, slots=True)
class Canvas:
    """A known picture.

    Attributes:
        clean: (1, …) its sample.
        mask: (1, 1, …) in [0, 1], 1 where it is painted anew and 0 where it is kept; None for anew everywhere.
        conditions: What painting models read of it (:meth:`pipelines.model.Codec.painted`), by model.
        retrace: Whether nothing is painted, and only the picture's densities are wanted.
    """

    clean: Tensor
    mask: Tensor | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    retrace: bool = False


def begin(noise: Tensor, sigma: float, canvas: Canvas | None, strength: float) -> Tensor:
    """The first sample: pure noise where everything is new, else the picture with noise over it.

    Args:
        noise: (B, …) standard normal numbers, on the device.
        sigma: The first level.
        canvas: The known picture, if there is one.
        strength: Of :class:`pipelines.params.SamplingParams`; at 1 what is painted keeps nothing of the picture.
    """
    z = sigma * noise
    if canvas is None:
        return z
    clean = canvas.clean.to(z)
    if strength < 1 or canvas.retrace:
        return z + clean
    return z if canvas.mask is None else z + (1 - canvas.mask.to(z)) * clean


def known_variance(sigma_t: float, sigma_s: float, h: float) -> float:
    """The noise that a step towards a known x_0 needs so that z ~ N(x_0, σ²) stays so: σ_s² − (1 − h/σ_t²)² σ_t².

    With h = σ_t² − σ_s² it is h σ_s²/σ_t², the variance of the posterior of z_s given z_t and x_0.
    """
    return max(0.0, sigma_s**2 - (1 - h / sigma_t**2) ** 2 * sigma_t**2)


def keep(
    canvas: Canvas, z: Tensor, sigma: float, predicted: Tensor, noise: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """The estimates and the noise of a step, with those of the known picture where the mask keeps it.

    Args:
        canvas: The picture, with a mask.
        z: (B, …) the samples before the step.
        sigma: Their noise level.
        predicted: (B, M + P, …) ε̂ of each estimate.
        noise: (B, …) standard normal numbers.
        share: The standard deviation of the kept part's noise, in that of the step's.
    """
    if canvas.mask is None:
        return predicted, noise
    mask, clean = canvas.mask.to(predicted), canvas.clean.to(predicted)
    kept = torch.lerp(((z - clean) / sigma).unsqueeze(1), predicted, mask.unsqueeze(1))
    return kept, noise * (mask + (1 - mask) * share)


def retraced(
    canvas: Canvas, z: Tensor, predicted: Tensor, noise: Tensor, course: tuple[float, float, float], kept_v: float
) -> Tensor:
    """The noise by which a step along the components' mean lands on the posterior's path to the known picture.

    Args:
        canvas: The picture.
        z: (B, …) the samples before the step.
        predicted: (B, M, …) ε̂ of the leaves, weighted equally by the step's rule.
        noise: (B, …) standard normal numbers.
        course: (σ_t, h, v) of the step, v > 0.
        kept_v: :func:`known_variance` of the step.
    """
    sigma, h, v = course
    pull = h / sigma * (predicted.mean(1) - (z - canvas.clean.to(z)) / sigma)
    return (pull + math.sqrt(kept_v) * noise) / math.sqrt(v)
