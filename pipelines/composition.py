"""The expression of a request: what is composed, and by which operator.

    Expression = Prompt | Or | And | Average | Product       (the operators over prompts)

An expression is data; what an operator does to the vector fields stands in :mod:`pipelines.superposition`.
"""

import math
from dataclasses import dataclass
from typing import Final

from pipelines.errors import InvalidInputError

MAX_COMPONENTS: Final = 16


Adapters = tuple[tuple[str, float], ...]
"""LoRAs by name, each with its scale; sorted by name."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A leaf: the density of one model under one condition.

    Attributes:
        text: The prompt; empty for the model's unconditional density.
        model: The catalogue's name of the model.
        adapters: The LoRAs that the model wears for this component.
        negative: What guidance leads this component away from; None for what the request says.
    """

    text: str
    model: str
    adapters: Adapters = ()
    negative: str | None = None


@dataclass(frozen=True, slots=True)
class Or:
    """The mixture of its terms' densities: a sample that any of them explains (Skreta et al., 2025, Proposition 5).

    Attributes:
        terms: The components.
        temperature: T ≥ 0 in κ = softmax(T log q_i + b_i); 1 is the mixture, large values follow the likeliest.
        biases: b_i, log prior odds in nats; () for none.
    """

    terms: tuple[Prompt, ...]
    temperature: float = 1.0
    biases: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_terms(self.terms, self.biases)
        if not 0 <= self.temperature < math.inf:
            detail = f"temperature must be finite and ≥ 0, got {self.temperature}"
            raise InvalidInputError(detail, field=("temperature",))


@dataclass(frozen=True, slots=True)
class And:
    """A sample that all terms explain equally well (Skreta et al., 2025, Proposition 6).

    Attributes:
        terms: The components.
        lifts: The final log q_i in nats relative to the others' lifts: log q_i − log q_j ends at lift_i − lift_j;
            () for none.
    """

    terms: tuple[Prompt, ...]
    lifts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_terms(self.terms, self.lifts)
        lifts: dict[Prompt, float] = {}
        for i, (term, lift) in enumerate(zip(self.terms, self.lifts or (0.0,) * len(self.terms), strict=True)):
            if lifts.setdefault(term, lift) != lift:
                detail = "this component is the same as an earlier one, so their log-densities cannot end apart"
                raise InvalidInputError(detail, field=("components", i, "weight"))


@dataclass(frozen=True, slots=True)
class Average:
    """Fixed weights, normalised to sum to one: the baseline without a density estimate; () for equal weights."""

    terms: tuple[Prompt, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_terms(self.terms, self.weights)
        if self.weights and not (min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf):
            detail = "the weights of an average must be ≥ 0 and not all 0, with a finite sum"
            raise InvalidInputError(detail, field=("components", 0, "weight"))


@dataclass(frozen=True, slots=True)
class Product:
    """s_u + w Σ a_i (s_i − s_u), the product of conditional densities; a_i are the weights, () for 1 each.

    References:
        Compositional Visual Generation with Composable Diffusion Models (Liu et al., ECCV 2022), eq. 11.
    """

    terms: tuple[Prompt, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_terms(self.terms, self.weights)


Expression = Prompt | Or | And | Average | Product


def leaves(expression: Expression) -> tuple[Prompt, ...]:
    """The prompts of an expression, in the order in which they were written."""
    return (expression,) if isinstance(expression, Prompt) else expression.terms


def _check_terms(terms: tuple[Prompt, ...], numbers: tuple[float, ...]) -> None:
    if not 1 <= len(terms) <= MAX_COMPONENTS:
        detail = f"an operator takes 1 to {MAX_COMPONENTS} components, got {len(terms)}"
        raise InvalidInputError(detail, field=("components",))
    if numbers and len(numbers) != len(terms):
        detail = f"{len(terms)} components need as many weights, got {len(numbers)}"
        raise InvalidInputError(detail, field=("components",))
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise InvalidInputError(f"a weight must be finite, got {number}", field=("components", i, "weight"))
