"""Expressions over exact mixtures, each with its truth: what its samples should be, without any network.

    OR              the mixture                                       closed form
    product         p_1 p_2 / p_u                                     closed form
    geometric mean  √(p_1 p_2) ≤ (p_1 + p_2)/2                        rejection from the mixture
    soft AND        ((p_1^−λ + p_2^−λ)/2)^(−1/λ), the same bound      rejection from the mixture
    AND over OR     the same, with a mixture as one of the terms
    AND NOT         soft AND of p_1 and p_u^(1+γ)/p_2^γ ≤ 2^(1/λ) p_1  rejection from p_1
    balanced AND    no density of its own: its terms' log-densities are equal

All log-densities here are written from the formulas, not taken from the product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Final

import torch
from torch import Tensor

from evaluation.mixtures import Known, Rejected, Truth, log_density, product, random_mixture, union
from pipelines.composition import And, Average, Expression, Method, Not, Or, Product, Prompt
from pipelines.families.analytic import GaussianMixture

MODEL: Final = "m"
SHARPNESS: Final = 0.5
NOT_SCALE: Final = 0.5
_UNCONDITIONAL_STD: Final = 1.5
# Where densities must overlap for there to be anything to find, their means are this far apart, whatever D is.
_NEAR: Final = 2.0


@dataclass(frozen=True)
class Problem:
    """An expression with its truth.

    Attributes:
        name: What tables call it.
        components: How many mixtures it is over.
        spread: Of the mixtures' means, by dimension.
        express: Leaves → expression.
        level: (components, unconditional, z, σ) → the root's log-density; None for balanced AND, which has none.
        truth: (components, unconditional) → what its samples should be; None likewise.
    """

    name: str
    components: int
    spread: Callable[[int], float]
    express: Callable[[tuple[Prompt, ...]], Expression]
    level: Callable[[Sequence[GaussianMixture], GaussianMixture, Tensor, float], Tensor] | None
    truth: Callable[[Sequence[GaussianMixture], GaussianMixture], Truth] | None

    def densities(self, dimension: int) -> list[GaussianMixture]:
        """Its mixtures, the same for every sampler."""
        return [random_mixture(1 + i, dimension, spread=self.spread(dimension)) for i in range(self.components)]

    def expression(self) -> Expression:
        """Over the prompts "p0", "p1", …."""
        return self.express(tuple(Prompt(f"p{i}", MODEL) for i in range(self.components)))


def unconditional(dimension: int) -> GaussianMixture:
    """The reference: one Gaussian, wider than the mixtures."""
    return GaussianMixture(torch.zeros(1, dimension, dtype=torch.float64), _UNCONDITIONAL_STD)


def _wide(_: int) -> float:
    return 1.0


def _near(dimension: int) -> float:
    return _NEAR / sqrt(dimension)


def soft_minimum(levels: Tensor, sharpness: float) -> Tensor:
    """log of the power mean of exponent −λ of densities, (B,) from (B, n) log-densities."""
    return -((-sharpness * levels).logsumexp(1) - log(levels.shape[1])) / sharpness


def _or_level(parts: Sequence[GaussianMixture], _: GaussianMixture, z: Tensor, sigma: float) -> Tensor:
    return torch.stack([log_density(p, z, sigma) for p in parts], 1).logsumexp(1) - log(len(parts))


def _product_level(parts: Sequence[GaussianMixture], wide: GaussianMixture, z: Tensor, sigma: float) -> Tensor:
    return log_density(parts[0], z, sigma) + log_density(parts[1], z, sigma) - log_density(wide, z, sigma)


def _mean_level(parts: Sequence[GaussianMixture], _: GaussianMixture, z: Tensor, sigma: float) -> Tensor:
    return torch.stack([log_density(p, z, sigma) for p in parts], 1).mean(1)


def _and_level(parts: Sequence[GaussianMixture], _: GaussianMixture, z: Tensor, sigma: float) -> Tensor:
    return soft_minimum(torch.stack([log_density(p, z, sigma) for p in parts], 1), SHARPNESS)


def _nested_level(parts: Sequence[GaussianMixture], wide: GaussianMixture, z: Tensor, sigma: float) -> Tensor:
    either = _or_level(parts[1:], wide, z, sigma)
    return soft_minimum(torch.stack([log_density(parts[0], z, sigma), either], 1), SHARPNESS)


def _not_level(parts: Sequence[GaussianMixture], wide: GaussianMixture, z: Tensor, sigma: float) -> Tensor:
    away = (1 + NOT_SCALE) * log_density(wide, z, sigma) - NOT_SCALE * log_density(parts[1], z, sigma)
    return soft_minimum(torch.stack([log_density(parts[0], z, sigma), away], 1), SHARPNESS)


def _rejected(
    level: Callable[[Sequence[GaussianMixture], GaussianMixture, Tensor, float], Tensor],
    envelope: Callable[[Sequence[GaussianMixture]], GaussianMixture],
    bound: float = 0.0,
) -> Callable[[Sequence[GaussianMixture], GaussianMixture], Truth]:
    return lambda parts, wide: Rejected(envelope(parts), lambda z: level(parts, wide, z, 0.0), bound)


def _whole(parts: Sequence[GaussianMixture]) -> GaussianMixture:
    return union(*parts)


def _with_either(parts: Sequence[GaussianMixture]) -> GaussianMixture:
    """The mean of the first and of the mixture of the others."""
    return union(parts[0], union(*parts[1:]))


OR: Final = Problem("OR", 2, _wide, Or, _or_level, lambda parts, _: Known(union(*parts)))
BALANCED: Final = Problem("balanced AND", 2, _wide, lambda t: And(t, method=Method.BALANCED), None, None)
PROBLEMS: Final[Mapping[str, Problem]] = {
    p.name: p
    for p in (
        OR,
        *(Problem(f"OR of {m}", m, _wide, Or, _or_level, lambda parts, _: Known(union(*parts))) for m in (3, 5)),
        BALANCED,
        *(Problem(f"balanced AND of {m}", m, _wide, BALANCED.express, None, None) for m in (3, 5)),
        Problem("product", 2, _near, Product, _product_level, lambda p, wide: Known(product(p[0], p[1], wide))),
        Problem("geometric mean", 2, _near, Average, _mean_level, _rejected(_mean_level, _whole)),
        Problem("soft AND", 2, _near, lambda t: And(t, sharpness=SHARPNESS), _and_level, _rejected(_and_level, _whole)),
        Problem(
            "AND over OR",
            3,
            _near,
            lambda t: And((t[0], Or(t[1:])), sharpness=SHARPNESS),
            _nested_level,
            _rejected(_nested_level, _with_either),
        ),
        Problem(
            "AND NOT",
            2,
            _near,
            lambda t: And((t[0], Not(t[1], NOT_SCALE)), sharpness=SHARPNESS),
            _not_level,
            _rejected(_not_level, lambda parts: parts[0], log(2) / SHARPNESS),
        ),
    )
}
"""Every problem by its name."""
