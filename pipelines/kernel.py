r"""Transition kernels: how far a reverse step moves and how much noise it adds.

From σ_t to σ_s < σ_t a model i moves by

    z_s = z_t + h s_i(z_t, σ_t) + √v ξ,      ξ ~ N(0, I)

and the same (h, v) stand in the density ratio (see :mod:`pipelines.superposition`), so a kernel is a function
(σ_t, σ_s, m) → (h, v), where m = E|x_0 − x̂0|²/D is the model's denoising error at σ_t.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

import torch
from torch import Tensor

from pipelines.errors import InvalidInputError
from pipelines.prediction import per_sample

Transition = tuple[Tensor, Tensor]


class Kernel(StrEnum):
    """The kernels by name."""

    CALIBRATED = "calibrated"
    POSTERIOR = "posterior"
    EXACT = "exact"
    EULER_MARUYAMA = "euler_maruyama"
    DETERMINISTIC = "deterministic"
    PROBABILITY_FLOW = "probability_flow"

    @property
    def adds_noise(self) -> bool:
        """Whether its steps are random: what particles and the density of a picture need."""
        return self not in {Kernel.DETERMINISTIC, Kernel.PROBABILITY_FLOW}


def euler_maruyama(sigma_t: Tensor, sigma_s: Tensor, error: Tensor) -> Transition:
    """h = v = 2σ_t(σ_t − σ_s): the reverse SDE by Euler–Maruyama, as in SuperDiff's reference (Skreta et al., 2025)."""
    h = 2 * sigma_t * (sigma_t - sigma_s)
    return h, h


def exact(sigma_t: Tensor, sigma_s: Tensor, error: Tensor) -> Transition:
    """h = v = σ_t² − σ_s²: as much noise as the forward kernel adds; too much in large steps."""
    h = sigma_t**2 - sigma_s**2
    return h, h


def posterior(sigma_t: Tensor, sigma_s: Tensor, error: Tensor) -> Transition:
    """v = h σ_s²/σ_t²: the variance of z_s given z_t and x_0 (Ho et al., 2020, eq. 7)."""
    h = sigma_t**2 - sigma_s**2
    return h, h * (sigma_s / sigma_t) ** 2


def calibrated(sigma_t: Tensor, sigma_s: Tensor, error: Tensor) -> Transition:
    """v = h σ_s²/σ_t² + (h/σ_t²)² m(σ_t): the true mean variance of the reverse step.

    References:
        Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion Probabilistic Models (Bao et
        al., ICLR 2022), theorem 1.
    """
    h, v = posterior(sigma_t, sigma_s, error)
    return h, v + (h / sigma_t**2) ** 2 * error


def deterministic(sigma_t: Tensor, sigma_s: Tensor, error: Tensor) -> Transition:
    """h = σ_t(σ_t − σ_s), v = 0: Euler's step of the probability-flow ODE (DDIM).

    Without noise there is no density ratio. The probability-flow kernel takes the same step and follows the densities
    by their divergence (:mod:`pipelines.probability_flow`).
    """
    h = sigma_t * (sigma_t - sigma_s)
    return h, torch.zeros_like(h)


_FUNCTIONS: Final[dict[Kernel, Callable[[Tensor, Tensor, Tensor], Transition]]] = {
    Kernel.CALIBRATED: calibrated,
    Kernel.POSTERIOR: posterior,
    Kernel.EXACT: exact,
    Kernel.EULER_MARUYAMA: euler_maruyama,
    Kernel.DETERMINISTIC: deterministic,
    Kernel.PROBABILITY_FLOW: deterministic,
}


def transitions(kernel: Kernel, sigmas: Tensor, error: Tensor) -> Transition:
    """(h, v) of every step of a grid.

    The step to σ = 0 is the same for every kernel, h = σ_t² and v = 0: it lands on x̂0 and adds no noise.

    Args:
        kernel: Which one.
        sigmas: (N + 1,) descending.
        error: (N,) m at the first N levels.

    Returns:
        h and v, each (N,) in the type of ``sigmas``.
    """
    sigma_t, sigma_s = sigmas[:-1], sigmas[1:]
    h, v = _FUNCTIONS[kernel](sigma_t, sigma_s, error.to(sigmas))
    lands = sigma_s == 0
    return torch.where(lands, sigma_t**2, h), torch.where(lands, 0.0, v)


@dataclass(frozen=True, slots=True)
class DenoisingError:
    """A measured curve m(σ), interpolated linearly in log σ and held at its ends.

    Attributes:
        sigmas: The levels it was measured at, ascending and positive.
        values: m at each, in squared units of the data.
    """

    sigmas: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(0 < a < b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        finite = all(math.isfinite(number) for number in (*self.sigmas, *self.values))
        matched = len(self.sigmas) == len(self.values) >= 2
        if not (matched and ascending and finite and min(self.values) >= 0):
            detail = (
                "a denoising-error curve needs two or more ascending positive levels with a finite value ≥ 0 for each"
            )
            raise InvalidInputError(detail, field=("calibration",))

    def __call__(self, sigma: Tensor) -> Tensor:
        """m at the given levels; same shape, float64."""
        levels = torch.tensor(self.sigmas, dtype=torch.float64).log()
        values = torch.tensor(self.values, dtype=torch.float64)
        wanted = sigma.to(levels).log().clamp(levels[0], levels[-1])
        low = (torch.searchsorted(levels, wanted, right=True) - 1).clamp(0, len(levels) - 2)
        return torch.lerp(values[low], values[low + 1], (wanted - levels[low]) / (levels[low + 1] - levels[low]))

    @classmethod
    def gaussian(cls, std: float, sigma_min: float, sigma_max: float, points: int = 64) -> Self:
        """σ²σ_d²/(σ² + σ_d²), exact for Gaussian data of standard deviation σ_d: the fallback for unmeasured models."""
        sigmas = torch.logspace(0, 1, points, base=sigma_max / sigma_min, dtype=torch.float64) * sigma_min
        return cls(tuple(sigmas.tolist()), tuple((sigmas**2 * std**2 / (sigmas**2 + std**2)).tolist()))


def measure_denoising_error(
    denoised: Callable[[Tensor, Tensor], Tensor], clean: Tensor, sigmas: Tensor, generator: torch.Generator
) -> DenoisingError:
    """Measure m(σ) = E|x_0 − x̂0(x_0 + σε, σ)|²/D on clean samples.

    Args:
        denoised: (z, σ) → x̂0, on (B, …) and (B,).
        clean: (B, …) samples of the data, or of the model itself where there are no data.
        sigmas: (K,) levels, ascending.
        generator: Draws ε, on the CPU.

    Returns:
        The curve, one value a level.
    """
    values = []
    for sigma in sigmas.tolist():
        levels = torch.full((len(clean),), sigma, dtype=clean.dtype, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32).to(clean)
        estimate = denoised(clean + per_sample(levels, clean) * noise, levels)
        values.append(float((estimate.double() - clean.double()).square().mean()))
    return DenoisingError(tuple(sigmas.tolist()), tuple(values))
