"""Exact Gaussian mixtures: the truth in closed form for OR and for products, and what samples say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from evaluation.judges.distances import sliced_w2
from pipelines.calibration import calibration_levels
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.kernel import DenoisingError, measure_denoising_error

SIGMA_MIN: Final = 0.03
MODES: Final = 5
STD: Final = 0.35
_MEASURED_SAMPLES: Final = 1000
_PROPOSALS: Final = 20_000
_REJECTION_ROUNDS: Final = 400
_ROUNDING: Final = 1e-9


def random_mixture(seed: int, dimension: int, *, spread: float = 1.0, modes: int = MODES) -> GaussianMixture:
    """Equal modes of standard deviation 0.35 whose means are normal with standard deviation ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixture(spread * torch.randn(modes, dimension, generator=generator, dtype=torch.float64), STD)


def union(*densities: GaussianMixture) -> GaussianMixture:
    """The even mixture of mixtures: what OR with T = 1 samples."""
    return GaussianMixture(
        torch.cat([d.means for d in densities]),
        torch.cat([d.variances for d in densities]).sqrt(),
        torch.cat([d.log_weights.softmax(0) for d in densities]),
    )


def product(one: GaussianMixture, two: GaussianMixture, over: GaussianMixture) -> GaussianMixture:
    r"""p_1 p_2/p_u normalised, for a single Gaussian p_u that is wider than the others: what a product samples.

    Each pair of modes multiplies to one mode: precisions add, 1/v = 1/v_1 + 1/v_2 − 1/v_u, and so do the
    precision-weighted means, m/v = m_1/v_1 + m_2/v_2 − m_u/v_u; its weight is what completing the square leaves.
    """
    if len(over.means) != 1:
        raise ValueError(f"the reference of a product must be one Gaussian, got {len(over.means)}")
    v1, v2 = torch.broadcast_tensors(one.variances[:, None], two.variances[None])
    vu, mu = over.variances[0], over.means[0]
    precision = 1 / v1 + 1 / v2 - 1 / vu
    if not bool((precision > 0).all()):
        raise ValueError("the reference is narrower than the product's modes: the product has no density")
    m1, m2 = one.means[:, None], two.means[None]
    pulled = m1 / v1[..., None] + m2 / v2[..., None] - mu / vu
    mean = pulled / precision[..., None]
    size = one.dimension
    exponent = (
        mean.square().sum(-1) * precision - m1.square().sum(-1) / v1 - m2.square().sum(-1) / v2 + mu.square().sum() / vu
    ) / 2
    scale = -size / 2 * (precision.log() + v1.log() + v2.log() - vu.log())
    weight = one.log_weights[:, None] + two.log_weights[None] + exponent + scale
    return GaussianMixture(mean.flatten(0, 1), precision.reciprocal().sqrt().flatten(), weight.flatten().softmax(0))


class Truth(Protocol):
    """A density that samples are held against."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) exact samples."""
        ...

    def level(self, z: Tensor) -> Tensor:
        """(B,) its log-density up to a constant, in nats."""
        ...


@dataclass(frozen=True)
class Known:
    """A mixture as a truth."""

    mixture: GaussianMixture

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """As :meth:`Truth.sample`."""
        return self.mixture.sample(count, generator)

    def level(self, z: Tensor) -> Tensor:
        """As :meth:`Truth.level`."""
        return log_density(self.mixture, z, 0.0)


@dataclass(frozen=True)
class Rejected:
    """A density without closed samples, by rejection from a mixture that is nowhere less than it.

    Attributes:
        envelope: p_e.
        target: (B, D) → log p up to a constant, at most log p_e + ``bound`` everywhere.
        bound: In nats.
    """

    envelope: GaussianMixture
    target: Callable[[Tensor], Tensor]
    bound: float = 0.0

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """As :meth:`Truth.sample`; :class:`ValueError` where the target exceeds its bound or is hardly ever hit."""
        kept: list[Tensor] = []
        for _ in range(_REJECTION_ROUNDS):
            z = self.envelope.sample(_PROPOSALS, generator)
            gap = self.target(z) - log_density(self.envelope, z, 0.0) - self.bound
            if float(gap.max()) > _ROUNDING:
                raise ValueError(f"the target exceeds its envelope by {float(gap.max()):.3g} nats")
            kept.append(z[torch.rand(len(z), generator=generator, dtype=torch.float64).log() < gap])
            if sum(map(len, kept)) >= count:
                return torch.cat(kept)[:count]
        raise ValueError(f"{sum(map(len, kept))} of {count} samples accepted: the envelope is too far from the target")

    def level(self, z: Tensor) -> Tensor:
        """As :meth:`Truth.level`."""
        return self.target(z)


def measured_model(unconditional: GaussianMixture, prompts: Mapping[str, GaussianMixture]) -> AnalyticModel:
    """Mixtures as one model's prompts, with the mean of their measured denoising errors, as a calibration gives it."""
    levels = calibration_levels(AnalyticModel(unconditional, dict(prompts)))
    curves = [
        measure_denoising_error(
            density.denoised,
            density.sample(_MEASURED_SAMPLES, torch.Generator().manual_seed(3)),
            levels,
            torch.Generator().manual_seed(4),
        )
        for density in prompts.values()
    ]
    mean = torch.tensor([curve.values for curve in curves], dtype=torch.float64).mean(0)
    error = DenoisingError(curves[0].sigmas, tuple(mean.tolist()))
    return AnalyticModel(unconditional, dict(prompts), error=error)


def log_density(density: GaussianMixture, z: Tensor, sigma: float) -> Tensor:
    """log q_σ of samples, (B,)."""
    return density.log_density(z, torch.full((len(z),), sigma, dtype=torch.float64))


@dataclass(frozen=True, slots=True)
class Fit:
    """How samples compare with the truth.

    Attributes:
        squared_w2: The squared sliced 2-Wasserstein distance to exact samples.
        squared_floor: The same between two sets of exact samples of that size.
        log_density: The samples' mean log-density under the truth, less that of exact samples.
    """

    squared_w2: float
    squared_floor: float
    log_density: float


def compare(z: Tensor, truth: Truth, seed: int) -> Fit:
    """Compare samples with as many exact ones."""
    generator = torch.Generator().manual_seed(seed)
    exact, again = (truth.sample(len(z), generator) for _ in range(2))
    level, expected = (float(truth.level(s).mean()) for s in (z.double(), exact))
    return Fit(
        sliced_w2(z.numpy(), exact.numpy(), seed=seed) ** 2,
        sliced_w2(again.numpy(), exact.numpy(), seed=seed) ** 2,
        level - expected,
    )
