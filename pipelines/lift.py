r"""Lift: how much better a prompt explains a picture than no prompt, in nats.

    lift_i(x) = log q_i(x) − log q_u(x) = ½ ∫ E( |x̂0_u(x + σε, σ) − x|² − |x̂0_i(x + σε, σ) − x|² ) dγ,   γ = σ⁻²

by the I-MMSE relation (Guo, Shamai & Verdú, 2005). Every step of sampling evaluates both estimates at a noisy version
of the picture that comes out, so the integral's terms come for free ("cached" lift). The picture x is known only at the
end, but

    |u − x|² − |i − x|² = (u − i)(u + i) − 2x (u − i)

is linear in x: two running sums for each leaf give the lift of any picture afterwards, cell by cell, in memory that
does not grow with the steps. Along the sampler's own path the noise is not independent of the picture, which under
strong guidance biases the numbers; on fresh noise ("density") they are unbiased and cost further network calls.

References:
    CompLift: Improving Compositional Image Generation with Lift Scores (Yu et al., ICML 2025), arXiv 2505.13740.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def beside_references(predicted: Tensor, branch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each leaf's prediction and that of its reference, (B, M, …) each.

    Args:
        predicted: (B, M + P, …) of the leaves, then of the references.
        branch: For each leaf its reference.
    """
    return predicted[:, : len(branch)], predicted[:, len(branch) :][:, list(branch)]


@dataclass(frozen=True, slots=True)
class LiftSums:
    """The running sums of B samples with M leaves.

    Attributes:
        constant: (B, M, …) Σ ω (x̂0_u − x̂0_i)(x̂0_u + x̂0_i), float32.
        slope: (B, M, …) Σ ω (x̂0_u − x̂0_i), float32.
    """

    constant: Tensor
    slope: Tensor

    @classmethod
    def zeros(cls, z: Tensor, leaves: int) -> Self:
        """Before the first step, for samples z of shape (B, …)."""
        zeros = z.new_zeros(len(z), leaves, *z.shape[1:])
        return cls(zeros, zeros)

    def add(self, z: Tensor, sigma: float, predicted: Tensor, branch: Sequence[int], weight: float) -> Self:
        """One step further.

        Args:
            z: (B, …) noisy samples.
            sigma: Their noise level.
            predicted: (B, M + P, …) ε̂ of the leaves, then of the references, at z.
            branch: For each leaf its reference.
            weight: ω of the step.
        """
        own, reference = beside_references(predicted, branch)
        # x̂0 = z − σ ε̂: the difference of two x̂0 from that of two ε̂ keeps its digits at high noise.
        difference = (weight * sigma) * (own - reference)
        both = 2 * z.unsqueeze(1) - sigma * (own + reference)
        return type(self)(torch.addcmul(self.constant, difference, both), self.slope + difference)

    def take(self, index: Tensor) -> Self:
        """The sums of some samples, by their indices."""
        return type(self)(self.constant[index], self.slope[index])

    def maps(self, x: Tensor) -> Tensor:
        """The lift of every cell, (B, M, …spatial axes…) in nats, summed over channels (the first axis of a sample).

        Args:
            x: (B, …) the pictures' samples.
        """
        return (self.constant - 2 * self.slope * x.unsqueeze(1)).sum(2)

    def total(self, x: Tensor) -> Tensor:
        """The lift of every leaf, (B, M) float64 in nats."""
        return self.maps(x).double().flatten(2).sum(2) if x.ndim > 2 else self.maps(x).double()


def lift_weights(sigmas: Tensor) -> list[float]:
    """ω of every step of a grid: the trapezoidal rule in log σ, since ½ ∫ E dγ = ∫ E σ⁻² d log σ.

    In γ itself the rule is far off on coarse grids: E falls as fast as γ rises. Above the first level E counts as
    constant. The last level that is evaluated is the smallest above 0: the value of a picture below it is not known.

    Args:
        sigmas: (N,) the levels at which estimates are made, descending and positive.
    """
    if not len(sigmas):
        return []
    gamma, levels = sigmas.double() ** -2, sigmas.double().log()
    edges = torch.cat([levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:]])
    weights = -gamma * edges.diff()
    weights[:1] += gamma[:1] / 2
    return weights.tolist()
