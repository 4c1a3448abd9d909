"""The course of a request: its noise levels and what each step does to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.kernel import transitions
from pipelines.model import Model, Shape
from pipelines.noise import GRIDS, Grid
from pipelines.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Schedule:
    """A request's course; float64, on the CPU.

    Attributes:
        sigmas: (N + 1,) the grid.
        h: (N,) the kernel's step.
        v: (N,) its variance.
        lift_share: (N,) how much of AND's lifts each step takes; sums to 1, or 0 where no step adds noise.
    """

    sigmas: Tensor
    h: Tensor
    v: Tensor
    lift_share: Tensor

    @property
    def steps(self) -> int:
        """N."""
        return len(self.h)

    def at(self, index: int) -> tuple[float, float, float]:
        """(σ_t, h, v) of a step."""
        return float(self.sigmas[index]), float(self.h[index]), float(self.v[index])

    @property
    def estimates(self) -> bool:
        """Whether any step adds noise, so that densities are estimated at all."""
        return bool((self.v > 0).any())


def make_schedule(params: SamplingParams, models: Sequence[Model], shape: Shape) -> Schedule:
    """The grid over the noise levels that all models know, with the mean of their denoising errors.

    Args:
        params: How to sample.
        models: The model of each component: one that carries two components counts twice in the mean.
        shape: Of one sample; some models space their levels by it.
    """
    low = max(model.card.sigma_min for model in models)
    high = min(model.card.sigma_max for model in models)
    grid = params.grid or models[0].card.grid
    if grid is Grid.OWN:
        sigmas = _within(models[0].own_sigmas(params.steps, shape), low, high)
    else:
        sigmas = GRIDS[grid](params.steps, low, high)
    sigmas = sigmas[params.steps - params.calls :]
    if params.calls == 0:
        nothing = sigmas[:0]
        return Schedule(sigmas, nothing, nothing, nothing)
    error = torch.stack([model.card.error(sigmas[:-1]) for model in models]).mean(0)
    h, v = transitions(params.kernel, sigmas, error)
    return Schedule(sigmas, h, v, _lift_share(sigmas[:-1], h, v, error))


def _within(sigmas: Tensor, low: float, high: float) -> Tensor:
    """A grid of one model, bent evenly in log σ so that its ends lie within the levels that all models know."""
    levels = sigmas[:-1].log()
    first, last = float(levels[0].clamp(max=math.log(high))), float(levels[-1].clamp(min=math.log(low)))
    if (first, last) == (float(levels[0]), float(levels[-1])) or len(levels) == 1:
        return torch.cat([levels.clamp(max=first).exp(), sigmas[-1:]])
    bent = last + (levels - levels[-1]) * (first - last) / (levels[0] - levels[-1])
    return torch.cat([bent.exp(), sigmas[-1:]])


def _lift_share(sigma: Tensor, h: Tensor, v: Tensor, error: Tensor) -> Tensor:
    """How to share a lift among the steps: where components differ most against the noise, it costs least.

    A lift L of one step moves the sample by v L/|D|, which the noise makes v L²/(2|D|²) nats unlikely; so the costs'
    sum is least for L ∝ |D|²/v, D = h (x̂0_1 − x̂0_2)/σ². Before sampling, |x̂0_1 − x̂0_2|² is known only in kind: it
    vanishes with what the model does not know yet, m(σ), and with what it knows already, σ_d² − m(σ).
    """
    differing = error * (error.max() - error).clamp(min=0)
    share = torch.where(v > 0, h**2 / (sigma**4 * v.clamp(min=torch.finfo(v.dtype).tiny)) * differing, 0.0)
    noisy = (v > 0).to(v)
    share = torch.where(share.sum() > 0, share, noisy)
    return share / share.sum().clamp(min=torch.finfo(v.dtype).tiny)
