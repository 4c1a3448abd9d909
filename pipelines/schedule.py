"""The course of a request: its noise levels and what each step does to them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.choice import Weights, choice_weights
from pipelines.composition import leaves
from pipelines.kernel import Kernel, transitions
from pipelines.lift import lift_weights
from pipelines.model import Model
from pipelines.noise import GRIDS, Grid, karras_sigmas
from pipelines.plan import Plan


@dataclass(frozen=True, slots=True)
class Schedule:
    """A request's course; float64, on the CPU.

    Attributes:
        sigmas: (N + 1,) the grid.
        h: (N,) the kernel's step.
        v: (N,) its variance.
        lift_share: (N,) how much of balanced AND's lifts each step takes; sums to 1, or 0 without estimates.
        judged: (J,) levels at which candidates are compared on fresh noise after the last step.
        lift_weights: ω of every call in the lift (:mod:`pipelines.lift`), of the N first, then of the J.
        choice_weights: Of every call in the choice among candidates (:mod:`pipelines.choice`), likewise.
        flow: (N,) on the probability-flow ODE σ_s²(σ_t − σ_s)/σ_t, which stands in for v; else 0.
    """

    sigmas: Tensor
    h: Tensor
    v: Tensor
    lift_share: Tensor
    judged: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    lift_weights: tuple[float, ...] = ()
    choice_weights: tuple[Weights, ...] = ()
    flow: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    @property
    def steps(self) -> int:
        """N."""
        return len(self.h)

    @property
    def calls(self) -> int:
        """N + J, network calls in all."""
        return self.steps + len(self.judged)

    def at(self, index: int) -> tuple[float, float, float, float]:
        """(σ_t, h, v, share of the lifts that is attained after it) of a step."""
        lifted = float(self.lift_share[: index + 1].sum())
        return float(self.sigmas[index]), float(self.h[index]), float(self.v[index]), lifted

    def level(self, index: int) -> float:
        """The noise level of a network call."""
        return float(self.sigmas[index] if index < self.steps else self.judged[index - self.steps])

    @property
    def estimates(self) -> bool:
        """Whether any step adds noise or follows the probability flow, so that densities are estimated at all."""
        return bool((self.v > 0).any()) or self.flows

    @property
    def flows(self) -> bool:
        """Whether steps follow the probability-flow ODE and need divergences."""
        return bool((self.flow > 0).any())


def make_schedule(plan: Plan, models: Mapping[str, Model]) -> Schedule:
    """The grid over the noise levels that all models know, with the mean of their denoising errors.

    A model that has two leaves counts twice in the mean.

    Args:
        plan: Of the request.
        models: The loaded models by name.
    """
    params = plan.params
    asked = [models[leaf.model] for leaf in leaves(plan.expression)]
    low = max(model.card.sigma_min for model in asked)
    high = min(model.card.sigma_max for model in asked)
    grid = params.grid or asked[0].card.grid
    if grid is Grid.OWN:
        sigmas = _within(asked[0].own_sigmas(params.steps, plan.shape), low, high)
    else:
        sigmas = GRIDS[grid](params.steps, low, high)
    sigmas = sigmas[params.steps - params.calls :]
    if params.calls == 0:
        nothing = sigmas[:0]
        return Schedule(sigmas, nothing, nothing, nothing, flow=nothing)
    error = torch.stack([model.card.error(sigmas[:-1]) for model in asked]).mean(0)
    h, v = transitions(params.kernel, sigmas, error)
    flows = params.kernel is Kernel.PROBABILITY_FLOW
    flow = sigmas[1:] ** 2 * (1 - sigmas[1:] / sigmas[:-1]) if flows else torch.zeros_like(v)
    # Nothing is known at the highest level, so the error there is the data's own variance.
    scale = float(torch.stack([model.card.error(torch.tensor([high])) for model in asked]).mean().sqrt())
    judged = karras_sigmas(plan.judged, low, high)[:-1] if plan.judged else sigmas[:0]
    return Schedule(
        sigmas,
        h,
        v,
        _lift_share(sigmas[:-1], h, flow if flows else v, error),
        judged,
        (*lift_weights(sigmas[:-1]), *lift_weights(judged)),
        (*choice_weights(sigmas[:-1], scale), *choice_weights(judged, scale)),
        flow,
    )


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
