r"""Choosing among candidates: which of several pictures satisfies an expression best.

Two signs tell it, both from estimates x̂0 of leaf i and its reference u at noisy versions of the finished picture x.
With σ in standard deviations of the data:

    evidence_i      = Σ Δlog σ · σ⁻¹ (|x̂0_u − x|² − |x̂0_i − x|²),    σ ≥ 0.2
    disagreement_i  = Σ Δlog σ · |x̂0_u − x̂0_i|²,                      0.1 ≤ σ ≤ 0.25

Evidence is the lift (:mod:`pipelines.lift`) without its lowest levels, where it says more about the sharpness of edges
than about the prompt: its sign tells whether the prompt explains the picture. Disagreement is how much the prompt still
changes in a picture that is nearly clean: nothing, where the picture shows well what the prompt says. So of the
candidates whose evidence satisfies the expression, the one with the least disagreement is chosen; where none does, the
one that comes closest.

docs/evaluation.md has the rates. The signs were chosen on other pairs of prompts than those reported there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from pipelines.composition import And, AtLeast, Average, Expression, Not, Or, Product, Prompt, Xor
from pipelines.lift import LiftSums, beside_references

_EVIDENCE_FROM: Final = 0.2
_DISAGREEMENT_FROM: Final = 0.1
_DISAGREEMENT_TO: Final = 0.25
# Grids do not meet a limit exactly.
_SLACK: Final = 1.05
_TIE: Final = 1e-6

Weights = tuple[float, float]
"""Of a network call, for evidence and for disagreement."""


def choice_weights(sigmas: Tensor, scale: float) -> tuple[Weights, ...]:
    """The weights of every network call.

    Args:
        sigmas: (N,) descending levels.
        scale: The data's standard deviation.
    """
    if not len(sigmas):
        return ()
    relative = sigmas.double() / scale
    levels = relative.log()
    edges = torch.cat([levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:]])
    spacing = -edges.diff()
    seen = relative >= _EVIDENCE_FROM / _SLACK
    clean = (relative >= _DISAGREEMENT_FROM / _SLACK) & (relative <= _DISAGREEMENT_TO * _SLACK)
    evidence, disagreement = spacing / relative * seen, spacing * clean
    return tuple(zip(evidence.tolist(), disagreement.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class ChoiceSums:
    """The running sums of B samples with M leaves.

    Attributes:
        evidence: As a lift's sums, with weights of their own.
        disagreement: (B, M) float64.
    """

    evidence: LiftSums
    disagreement: Tensor

    @classmethod
    def zeros(cls, z: Tensor, leaves: int) -> Self:
        """Before the first call, for samples z of shape (B, …)."""
        return cls(LiftSums.zeros(z, leaves), torch.zeros(len(z), leaves, dtype=torch.float64, device=z.device))

    def add(self, z: Tensor, sigma: float, predicted: Tensor, branch: Sequence[int], weights: Weights) -> Self:
        """One network call further; see :meth:`pipelines.lift.LiftSums.add`."""
        own, reference = beside_references(predicted, branch)
        apart = (own - reference).double().flatten(2).square().sum(2)
        return type(self)(
            self.evidence.add(z, sigma, predicted, branch, weights[0]),
            self.disagreement + weights[1] * sigma**2 * apart,
        )

    def take(self, index: Tensor) -> Self:
        """The sums of some samples, by their indices."""
        return type(self)(self.evidence.take(index), self.disagreement[index])

    def score(self, expression: Expression, x: Tensor) -> Tensor:
        """How good pictures are, (B,) float64: higher is better; comparable among pictures of one request.

        Args:
            expression: What was asked for.
            x: (B, …) the finished samples.
        """
        satisfied = satisfaction(expression, self.evidence.total(x))
        agreed = agreement(expression, self.disagreement)
        # Both are brought into a unit interval, in order, the satisfied ones above. Where nothing is there to agree
        # with, as under NOT, the better satisfied one wins.
        level = satisfied / (1 + satisfied.abs())
        return torch.where(satisfied > 0, agreed / (1 - agreed) + _TIE * level, level - 2)


def satisfaction(expression: Expression, lifts: Tensor) -> Tensor:
    """How well pictures satisfy an expression, (B,): the worst of what must hold and the best of what may.

    A leaf counts its lift, AND, average and product the least of their terms, OR the greatest, NOT the opposite, XOR
    the best case of one term without the others, AtLeast(k) the k-th greatest.

    Args:
        expression: What was asked for.
        lifts: (B, M) of its leaves, positive where a prompt explains the picture.
    """
    return _fold(expression, lifts, lambda value: -value)


def agreement(expression: Expression, disagreement: Tensor) -> Tensor:
    """How well the prompts that must hold agree with the pictures, (B,), 0 at best; a term of NOT does not count.

    Args:
        expression: What was asked for.
        disagreement: (B, M) of its leaves, ≥ 0.
    """
    return _fold(expression, -disagreement, torch.zeros_like)


def _fold(expression: Expression, values: Tensor, refused: Callable[[Tensor], Tensor]) -> Tensor:
    """The value of an expression, (B,), from those of its leaves, (B, M); ``refused`` is what NOT makes of a term."""
    remaining = iter(values.unbind(1))

    def visit(node: Expression) -> Tensor:
        if isinstance(node, Prompt):
            return next(remaining)
        terms = [visit(term) for term in node.terms]
        stacked = torch.stack(terms, dim=1)
        match node:
            case Or():
                return stacked.amax(1)
            case And() | Average() | Product():
                return stacked.amin(1)
            case Not():
                return refused(terms[0])
            case Xor():
                cases = [[t if i == j else refused(t) for j, t in enumerate(terms)] for i in range(len(terms))]
                return torch.stack([torch.stack(case, dim=1).amin(1) for case in cases], dim=1).amax(1)
            case AtLeast(count=count):
                return stacked.sort(1, descending=True).values[:, count - 1]
        raise TypeError(f"no case for {type(node).__name__}")

    return visit(expression)
