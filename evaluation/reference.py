r"""The authors' algorithm, restated: what SuperDiff's own loop does, as a baseline for ours.

Skreta et al. run the reverse SDE in variance-exploding coordinates by Euler–Maruyama over a descending σ grid and speak
of the noise that a network predicts, ε_i(z, σ) = (z − x̂0_i)/σ = −σ s_i. With Δ = σ_s − σ_t < 0, guidance w and the
unconditional ε_u, one step is

    n = √(2 σ_t |Δ|) ξ
    d = 2 Δ Σ_i κ_i (ε_u + w (ε_i − ε_u)) + n                Σ κ = 1
    Δlog q_i = −(⟨d, ε_i⟩ + |Δ| |ε_i|²)/σ_t                  Theorem 1, the Itô density estimator

    OR        κ = softmax(T log q)
    AND       κ_1 = (Δ (|ε_1|² − |ε_2|²) − ⟨n + 2 Δ (ε_u + w (ε_2 − ε_u)), E⟩) / (2 Δ w |E|²),   E = ε_1 − ε_2
    average   κ_i = 1/M

AND (Proposition 6) has two components, as in the authors' code, and divides by zero where they are equal. The last step
goes to σ = 0: without noise, it lands on Σ κ_i x̂0_i with guidance.

``as_shipped`` keeps two faults of the published code: OR's density has Δ where |Δ| belongs, and the last step adds
noise like every other.

This file is independent of the product's composition core and shares no line with it; of the product it knows the
protocol of a model. It is slow on purpose: plain sums, no Gram matrix.

References:
    The Superposition of Diffusion Models Using the Itô Density Estimator (Skreta et al., ICLR 2025), Theorem 1,
    Propositions 5 and 6, Algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.model import Model


class Operator(StrEnum):
    """How the authors choose κ."""

    OR = "or"
    AND = "and"
    AVERAGE = "average"


@dataclass(frozen=True, slots=True)
class Component:
    """One density: a model with a prompt for each of the B pictures."""

    model: Model
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the loop runs.

    Attributes:
        operator: How κ is chosen.
        steps: N.
        guidance: w; the authors use 7.5 with prompts, and 1 (none) without.
        temperature: OR's T.
        as_shipped: Whether the published code's faults are kept.
        dtype: Of the state; networks compute in their own.
    """

    operator: Operator
    steps: int = 1000
    guidance: float = 1.0
    temperature: float = 1.0
    as_shipped: bool = False
    dtype: torch.dtype = torch.float64


class Outcome(NamedTuple):
    """What came out of B pictures with M components.

    Attributes:
        z: (B, …) clean samples.
        log_q: (B, M) float64, the sums of Δlog q_i.
        kappa: (B, M) float64, the mean κ over the steps.
        before: (B, …) the samples at the last level above 0.
        start: (B, …) the samples at the first level; log q_i begins at the density of N(0, σ_max²) there.
    """

    z: Tensor
    log_q: Tensor
    kappa: Tensor
    before: Tensor
    start: Tensor


def sample(
    components: Sequence[Component],
    seeds: Sequence[int],
    settings: Settings,
    *,
    sigmas: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Run the loop for B pictures at once; pictures do not influence each other.

    Args:
        components: M, in one data space; each with B texts.
        seeds: B; a picture's noise is drawn by a generator of its own.
        settings: How.
        sigmas: (N + 1,) descending to 0; None for the grid of the first model's makers.
        progress: Called with the number of steps taken.
    """
    lead = components[0].model
    if settings.operator is Operator.AND and len(components) != 2:
        raise ValueError(f"the authors' AND is of two components, got {len(components)}")
    shape = lead.card.sample_shape(lead.card.width, lead.card.height)
    levels = (lead.own_sigmas(settings.steps, shape) if sigmas is None else sigmas).double()
    ask = _asker(components, settings)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(lead.device, settings.dtype)

    z = before = start = float(levels[0]) * draw()
    log_q = torch.zeros(len(seeds), len(components), dtype=torch.float64, device=z.device)
    kappa_sum = torch.zeros_like(log_q)
    for k, (sigma, lower) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):
        before = z
        last = lower == 0 and not settings.as_shipped
        eps, eps_u = ask(z, sigma)
        noise = torch.zeros_like(z) if last else (2 * sigma * (sigma - lower)) ** 0.5 * draw()
        # Landing on x̂0 is a step of −σ ε: half of Euler–Maruyama's 2 Δ ε at Δ = −σ.
        delta = (lower - sigma) / 2 if last else lower - sigma
        kappa = _kappa(settings, eps, eps_u, noise, delta, log_q)
        guided = eps_u + settings.guidance * (eps - eps_u)
        moved = 2 * delta * (_over(kappa, z) * guided).sum(1) + noise
        if not last:
            log_q = log_q + _increments(settings, eps, moved, delta, sigma)
        z, kappa_sum = z + moved, kappa_sum + kappa
        if progress is not None:
            progress(k + 1)
    return Outcome(z, log_q, kappa_sum / settings.steps, before, start)


def _asker(components: Sequence[Component], settings: Settings) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    """(z, σ) → ε_i of all components, (B, M, …), and each component's ε_u; one forward a model.

    Without guidance nothing is asked for ε_u: it vanishes from the step, and ε_i stands in.
    """
    guided = settings.guidance != 1
    models = list({id(c.model): c.model for c in components}.values())
    plans = []
    for model in models:
        own = [i for i, c in enumerate(components) if c.model is model]
        texts = [text for i in own for text in components[i].texts]
        texts += [""] * len(components[own[0]].texts) if guided else []
        plans.append((model, own, len(own) + guided, model.encode_prompts(texts)))

    @torch.inference_mode()
    def ask(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        eps: list[Tensor] = [z] * len(components)
        eps_u = list(eps)
        for model, own, branches, condition in plans:
            rows = z.repeat(branches, *([1] * (z.dim() - 1)))
            level = torch.full((len(rows),), sigma, dtype=torch.float64, device=z.device)
            parts = model.predict_noise(rows, level, condition).chunk(branches)
            for i, part in zip(own, parts, strict=False):
                eps[i], eps_u[i] = part, parts[-1] if guided else part
        return torch.stack(eps, 1), torch.stack(eps_u, 1)

    return ask


def _kappa(settings: Settings, eps: Tensor, eps_u: Tensor, noise: Tensor, delta: float, log_q: Tensor) -> Tensor:
    """κ, (B, M) float64."""
    if settings.operator is Operator.OR:
        return (settings.temperature * log_q).softmax(1)
    if settings.operator is Operator.AVERAGE:
        return torch.full_like(log_q, 1 / log_q.shape[1])
    w, one, two = settings.guidance, eps[:, 0], eps[:, 1]
    apart = one - two
    base = noise + 2 * delta * (eps_u[:, 1] + w * (two - eps_u[:, 1]))
    wanted = delta * (_dot(one, one) - _dot(two, two)) - _dot(base, apart)
    first = wanted / (2 * delta * w * _dot(apart, apart))
    return torch.stack([first, 1 - first], 1)


def _increments(settings: Settings, eps: Tensor, moved: Tensor, delta: float, sigma: float) -> Tensor:
    """Δlog q_i, (B, M) float64."""
    shipped = settings.as_shipped and settings.operator is Operator.OR
    length = delta if shipped else abs(delta)
    each = [-(_dot(moved, e) + length * _dot(e, e)) / sigma for e in eps.unbind(1)]
    return torch.stack(each, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the B pictures, (B,) float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def _over(kappa: Tensor, z: Tensor) -> Tensor:
    """κ with as many trailing axes as a picture has, in its type."""
    return kappa.to(z).reshape(*kappa.shape, *([1] * (z.dim() - 1)))
