r"""Noise levels: grids of σ for sampling, and the σ ↔ timestep table of a discretely trained model.

Everything samples in variance-exploding coordinates, z = x_t / α_t with σ = σ_t / α_t, so that models with different
noise schedules meet at the same σ.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import torch
from torch import Tensor

from pipelines.errors import InvalidInputError

SIGMA_LIMIT: Final = 160.0
"""Where a path ends in pure noise (zero terminal SNR, flow matching) σ has no end; sampling starts here."""


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    r"""σ_i = (σ_max^{1/ρ} + i/(N−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ for i < N, and σ_N = 0.

    Args:
        steps: N ≥ 1, the number of transitions.
        sigma_min: The last level before 0; 0 < σ_min ≤ σ_max.
        sigma_max: The first level.
        rho: How strongly the levels crowd towards σ_min.

    Returns:
        (N + 1,) float64, descending.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., NeurIPS 2022), eq. 5.
    """
    _check_range(steps, sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _with_zero((high + ramp * (low - high)) ** rho)


def linear_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Equally spaced levels from σ_max down to σ_min, then 0; (N + 1,) float64."""
    _check_range(steps, sigma_min, sigma_max)
    return _with_zero(torch.linspace(sigma_max, sigma_min, steps, dtype=torch.float64))


def logarithmic_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels equally spaced in log σ from σ_max down to σ_min, then 0; (N + 1,) float64."""
    _check_range(steps, sigma_min, sigma_max)
    levels = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return _with_zero(levels.exp())


def timestep_sigmas(steps: int, table: "NoiseTable") -> Tensor:
    """The levels of N timesteps equally spaced over a model's table, last to first, then 0; (N + 1,) float64.

    The grid of a scheduler config with diffusers' timestep_spacing "linspace".
    """
    last = float(table.timestep(torch.tensor(table.sigma_max, dtype=torch.float64)))
    return _with_zero(table.sigma(torch.linspace(last, 0, steps, dtype=torch.float64)))


class Grid(StrEnum):
    """How the noise levels are spaced; OWN is the spacing that the model's makers sample it with."""

    KARRAS = "karras"
    LINEAR = "linear"
    LOGARITHMIC = "logarithmic"
    OWN = "own"


GRIDS: Final[Mapping[Grid, Callable[[int, float, float], Tensor]]] = {
    Grid.KARRAS: karras_sigmas,
    Grid.LINEAR: linear_sigmas,
    Grid.LOGARITHMIC: logarithmic_sigmas,
}
"""The grids that follow from their ends alone."""


def flow_time(sigma: Tensor) -> Tensor:
    """t = σ / (1 + σ): the time of a flow-matching path x_t = (1 − t) x_0 + t ε at noise level σ."""
    return sigma / (1 + sigma)


def flow_sigma(time: Tensor) -> Tensor:
    """σ = t / (1 − t), the inverse of :func:`flow_time`; infinite at t = 1."""
    return time / (1 - time)


@dataclass(frozen=True, slots=True)
class NoiseTable:
    """The σ of each training timestep of a variance-preserving model.

    Attributes:
        sigmas: (T,) float64, ascending; the entry t is √((1 − ᾱ_t) / ᾱ_t).
    """

    sigmas: Tensor

    @property
    def sigma_min(self) -> float:
        """The smallest trained level."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The largest usable level: where a zero-terminal-SNR schedule is infinite, the last finite one below 160."""
        usable = self.sigmas[self.sigmas <= SIGMA_LIMIT] if math.isinf(self.sigmas[-1]) else self.sigmas
        return float(usable[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional timestep of a level, interpolated in log σ and held at the table's ends; same shape."""
        finite = self.sigmas[torch.isfinite(self.sigmas)].to(sigma.device)
        logs = finite.log()
        wanted = sigma.to(logs).log().clamp(logs[0], logs[-1])
        low = (torch.searchsorted(logs, wanted, right=True) - 1).clamp(0, len(logs) - 2)
        return low + (wanted - logs[low]) / (logs[low + 1] - logs[low])

    def sigma(self, timestep: Tensor) -> Tensor:
        """The level of a fractional timestep; the inverse of :meth:`timestep`, held at the finite table's ends."""
        logs = self.sigmas[torch.isfinite(self.sigmas)].log().to(timestep.device)
        timestep = timestep.clamp(0, len(logs) - 1)
        low = timestep.long().clamp(0, len(logs) - 2)
        return torch.lerp(logs[low], logs[low + 1], timestep.to(logs) - low).exp()


def noise_table(config: Mapping[str, Any]) -> NoiseTable:
    """The table of a variance-preserving schedule, from the keys of a diffusers scheduler config.

    Reads ``num_train_timesteps``, ``trained_betas`` or ``beta_schedule`` (linear, scaled_linear, squaredcos_cap_v2)
    with ``beta_start`` and ``beta_end``, and ``rescale_betas_zero_snr``.

    References:
        Denoising Diffusion Probabilistic Models (Ho et al., NeurIPS 2020); Improved Denoising Diffusion Probabilistic
        Models (Nichol & Dhariwal, ICML 2021), eq. 17; Common Diffusion Noise Schedules and Sample Steps are Flawed
        (Lin et al., WACV 2024), algorithm 1.
    """
    cumulative = (1 - _betas(config)).cumprod(0)
    if config.get("rescale_betas_zero_snr", False):
        root = cumulative.sqrt()
        cumulative = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return NoiseTable(((1 - cumulative) / cumulative).sqrt())


def _betas(config: Mapping[str, Any]) -> Tensor:
    if (trained := config.get("trained_betas")) is not None:
        return torch.as_tensor(trained, dtype=torch.float64)
    count = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    match schedule := config.get("beta_schedule", "linear"):
        case "linear":
            return torch.linspace(start, end, count, dtype=torch.float64)
        case "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
        case "squaredcos_cap_v2":
            time = torch.linspace(0, 1, count + 1, dtype=torch.float64)
            level = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1 - level[1:] / level[:-1]).clamp(max=0.999)
        case _:
            allowed = "linear, scaled_linear, squaredcos_cap_v2"
            detail = f"unknown beta schedule {schedule!r}; allowed are {allowed}"
            raise InvalidInputError(detail, field=("beta_schedule",))


def _check_range(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1:
        raise InvalidInputError(f"steps must be at least 1, got {steps}", field=("steps",))
    if not 0 < sigma_min <= sigma_max < math.inf:
        detail = f"a σ grid needs 0 < σ_min ≤ σ_max < ∞, got σ_min = {sigma_min}, σ_max = {sigma_max}"
        raise InvalidInputError(detail, field=("sigmas",))


def _with_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])
