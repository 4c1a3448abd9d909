r"""Log-densities along the probability-flow ODE.

The deterministic path dz/dσ = ε̂ carries no noise that the Itô estimator could use. There

    d log q_i = (∂_σ log q_i + <s_i, dz/dσ>) dσ,      ∂_σ log q_i = σ (div s_i + |s_i|²)

holds along any path, so that each component also needs the divergence of its own score. With x̂0_i and σ div ε̂_i held
over a step d = z_s − z_t from σ_t to σ_s it integrates to

    Δlog q_i = (|z_t − x̂0_i|²/σ_t² − |z_s − x̂0_i|²/σ_s²)/2 + σ div ε̂_i log(σ_t/σ_s)

With the predictions at z_t alone the error is of first order in the step. The predictions at z_s come with the next
network call at no cost, and the mean of both increments is of second order.

References:
    The Superposition of Diffusion Models Using the Itô Density Estimator (Skreta et al., ICLR 2025), Proposition 5.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., ICLR 2021), appendix D.2:
    the divergence by Hutchinson's estimator, tr J = E <e, J e>.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class FlowStep(NamedTuple):
    """The last step taken, until the next network call corrects its increments.

    Attributes:
        d: (B, …) z_s − z_t.
        sigma: σ_t.
        increments: (B, M + P) float64, Δlog q_i by the predictions at z_t.
    """

    d: Tensor
    sigma: float
    increments: Tensor

    def take(self, index: Tensor) -> "FlowStep":
        """The step of some samples, by their indices."""
        return self._replace(d=self.d[index], increments=self.increments[index])


def increments(
    d: Tensor, predicted: Tensor, divergence: Tensor, sigma: float, sigma_t: float, sigma_s: float
) -> Tensor:
    """Δlog q_i of the step from σ_t to σ_s, (B, K) float64 in nats.

    Args:
        d: (B, …) z_s − z_t.
        predicted: (B, K, …) ε̂ at one end of the step.
        divergence: (B, K) div ε̂ there.
        sigma: The level of that end: σ_t or σ_s.
        sigma_t: Where the step began.
        sigma_s: Where it ended, > 0.
    """
    away = sigma * predicted.double().flatten(2)
    step = d.double().flatten(1).unsqueeze(1)
    # z − x̂0 at both ends of the step.
    start, end = (away, away + step) if sigma == sigma_t else (away - step, away)
    squares = start.square().sum(2) / sigma_t**2 - end.square().sum(2) / sigma_s**2
    ratio = torch.tensor(sigma_t / sigma_s, dtype=torch.float64).log()
    return squares / 2 + sigma * divergence.double() * ratio


def correction(last: FlowStep, predicted: Tensor, divergence: Tensor, sigma: float) -> Tensor:
    """What the predictions at z_s change in the last step's increments, (B, K) float64: half the difference.

    Args:
        last: The step that led to z_s.
        predicted: (B, K, …) ε̂ at z_s.
        divergence: (B, K) div ε̂ there.
        sigma: σ_s.
    """
    return (increments(last.d, predicted, divergence, sigma, last.sigma, sigma) - last.increments) / 2
