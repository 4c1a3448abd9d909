"""Expressions: what is composed, and by which operators.

    Expression = Prompt                                      a leaf: the density of one model under one condition
               | Or | And | Xor | AtLeast | Not              logic
               | Average | Product                           fixed weights

Operators take expressions, so they nest. An expression is data. What each operator means for scores and log-densities
is in :mod:`pipelines.mixing`; what must hold of a whole tree (its depth, its number of leaves, where a balanced AND may
be) is checked by :func:`check_tree`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Final, NamedTuple

from pipelines.errors import InvalidInputError

MAX_LEAVES: Final = 16
"""Leaves of one expression, as written."""
MAX_DEPTH: Final = 8
"""Operators on the way from the root to a leaf."""
MAX_SUBSETS: Final = 256
"""Subsets of its terms that one AtLeast may go through."""
DEFAULT_SHARPNESS: Final = 0.03
"""λ of the soft AND, per nat."""
DEFAULT_NOT_SCALE: Final = 0.5
"""γ of NOT; guidance multiplies it. With less, what is not to be there is shown more often; more spoils pictures."""
DECISIVE: Final = 100.0
"""Temperature of the OR inside XOR and AtLeast: one case is chosen early, or the cases' refusals would cancel."""

Adapters = tuple[tuple[str, float], ...]
"""LoRAs by name, each with its scale; sorted by name."""

Path = tuple[str | int, ...]
"""Where something is in an expression: ("terms", 1, "terms", 0, "lift")."""


class Method(StrEnum):
    """The two kinds of AND."""

    SOFT = "soft"
    """Follow the component that is behind (Blohm & Garg, 2026): pictures that show all components."""
    BALANCED = "balanced"
    """Equal log-densities (Skreta et al., 2025, Proposition 6): pictures that all components explain equally well."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A leaf: the density of one model under one condition.

    Attributes:
        text: The prompt; empty for the model's unconditional density.
        model: The name of the model in the catalogue.
        adapters: The LoRAs that are applied to the model for this leaf.
        negative: What guidance leads this leaf away from; None for the request's negative prompt.
    """

    text: str
    model: str
    adapters: Adapters = ()
    negative: str | None = None

    def __post_init__(self) -> None:
        for name, scale in self.adapters:
            if not math.isfinite(scale):
                raise InvalidInputError(f"the scale of the LoRA {name!r} must be finite, got {scale}", field=("lora",))


@dataclass(frozen=True, slots=True)
class Or:
    """The mixture of its terms' densities: a sample that any of them explains (Skreta et al., 2025, Proposition 5).

    Attributes:
        terms: The components.
        temperature: T ≥ 0 in κ = softmax(T log q_i + b_i); 1 is the mixture, large values follow the likeliest term.
        biases: b_i, log prior odds in nats; () for none.
    """

    terms: "tuple[Expression, ...]"
    temperature: float = 1.0
    biases: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_numbers(self.terms, self.biases, "bias")
        if not 0 <= self.temperature < math.inf:
            detail = f"temperature must be finite and ≥ 0, got {self.temperature}"
            raise InvalidInputError(detail, field=("temperature",))


@dataclass(frozen=True, slots=True)
class And:
    """A sample that shows all terms ("soft"), or that all terms explain equally well ("balanced").

    Attributes:
        terms: The components.
        lifts: L_i in nats. Soft: term i counts as if its log-density were lower by L_i, so it gets more weight.
            Balanced: log q_i − log q_j ends at L_i − L_j. () for none.
        method: Which AND.
        sharpness: λ > 0 of the soft AND, per nat: large values follow the minimum, small ones the average.
    """

    terms: "tuple[Expression, ...]"
    lifts: tuple[float, ...] = ()
    method: Method = Method.SOFT
    sharpness: float = DEFAULT_SHARPNESS

    def __post_init__(self) -> None:
        _check_numbers(self.terms, self.lifts, "lift")
        _check_sharpness(self.sharpness)
        if self.method is Method.BALANCED:
            lifts: dict[Expression, float] = {}
            for i, (term, lift) in enumerate(zip(self.terms, self.lifts or (0.0,) * len(self.terms), strict=True)):
                if lifts.setdefault(term, lift) != lift:
                    detail = "this term equals an earlier one, so both must have the same lift"
                    raise InvalidInputError(detail, field=("terms", i, "lift"))


@dataclass(frozen=True, slots=True)
class Xor:
    """Exactly one of its terms: OR over i of (term i AND NOT every other term), the OR decisive.

    Attributes:
        terms: The components, two or more.
        biases: Head starts of the cases in nats: they add to the cases' log-densities; () for none.
        sharpness: λ of the soft ANDs.
        scale: γ ≥ 0 of a case's NOTs together; each has an equal share of it, or many terms would spoil the picture.
    """

    terms: "tuple[Expression, ...]"
    biases: tuple[float, ...] = ()
    sharpness: float = DEFAULT_SHARPNESS
    scale: float = DEFAULT_NOT_SCALE

    def __post_init__(self) -> None:
        _check_numbers(self.terms, self.biases, "bias", least=2)
        _check_sharpness(self.sharpness)
        _check_scale(self.scale)


@dataclass(frozen=True, slots=True)
class AtLeast:
    """At least ``count`` of its terms: OR over all subsets of that size of the soft AND of the subset, decisive.

    Attributes:
        count: k, from 1 to the number of terms.
        terms: The components.
        sharpness: λ of the soft ANDs.
    """

    count: int
    terms: "tuple[Expression, ...]"
    sharpness: float = DEFAULT_SHARPNESS

    def __post_init__(self) -> None:
        _check_numbers(self.terms, (), "weight")
        _check_sharpness(self.sharpness)
        if not 1 <= self.count <= len(self.terms):
            detail = f"at least {self.count} of {len(self.terms)} terms: the number must be 1 to {len(self.terms)}"
            raise InvalidInputError(detail, field=("count",))
        if (subsets := math.comb(len(self.terms), self.count)) > MAX_SUBSETS:
            detail = f"{self.count} of {len(self.terms)} terms are {subsets} subsets; at most {MAX_SUBSETS} are allowed"
            raise InvalidInputError(detail, field=("count",))

    @property
    def subsets(self) -> tuple[tuple[int, ...], ...]:
        """The subsets of term indices that it goes through."""
        return tuple(combinations(range(len(self.terms)), self.count))


@dataclass(frozen=True, slots=True)
class Not:
    """Away from a term: (1 + γ) reference − γ term, for scores and log-densities alike (Blohm & Garg, 2026).

    The reference is the unconditional branch of the term's leaves, or their negative prompt.

    Attributes:
        term: What the sample must not be.
        scale: γ ≥ 0; 0 is the reference itself.
    """

    term: "Expression"
    scale: float = DEFAULT_NOT_SCALE

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    @property
    def terms(self) -> "tuple[Expression, ...]":
        """The one term."""
        return (self.term,)


@dataclass(frozen=True, slots=True)
class Average:
    """The geometric mean of the densities with fixed weights, which are normalised to sum to 1; () for equal ones."""

    terms: "tuple[Expression, ...]"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_numbers(self.terms, self.weights, "weight")
        if self.weights and not (min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf):
            detail = "the weights of an average must be ≥ 0 and not all 0, with a finite sum"
            at = min(range(len(self.weights)), key=self.weights.__getitem__)
            raise InvalidInputError(detail, field=("terms", at, "weight"))


@dataclass(frozen=True, slots=True)
class Product:
    """The product of the terms' densities relative to the reference: q_r Π (q_i / q_r)^β_i.

    β_i are the weights, () for 1 each.

    References:
        Compositional Visual Generation with Composable Diffusion Models (Liu et al., ECCV 2022), eq. 11.
    """

    terms: "tuple[Expression, ...]"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_numbers(self.terms, self.weights, "weight")


Operator = Or | And | Xor | AtLeast | Not | Average | Product
Expression = Prompt | Operator


class Traits(NamedTuple):
    """What the rest of the product needs to know of an operator.

    Attributes:
        word: Its name in the text form, on the wire and on the command line.
        number: What one number a term means: "bias", "lift" or "weight"; "" where a term has no number.
        weighs: Whether its weights follow from log-densities, so that it needs a kernel that adds noise.
        refers: Whether it needs the reference branch of its leaves.
    """

    word: str
    number: str
    weighs: bool
    refers: bool


TRAITS: Final[dict[type[Operator], Traits]] = {
    Or: Traits("or", "bias", weighs=True, refers=False),
    And: Traits("and", "lift", weighs=True, refers=False),
    Xor: Traits("xor", "bias", weighs=True, refers=True),
    AtLeast: Traits("at_least", "", weighs=True, refers=False),
    Not: Traits("not", "", weighs=False, refers=True),
    Average: Traits("average", "weight", weighs=False, refers=False),
    Product: Traits("product", "weight", weighs=False, refers=True),
}
"""The operators. Adding one means a node here, one case in :mod:`pipelines.mixing`, one in the wire's schema."""


def leaves(expression: Expression) -> tuple[Prompt, ...]:
    """The prompts of an expression in the order in which they were written."""
    if isinstance(expression, Prompt):
        return (expression,)
    return tuple(leaf for term in expression.terms for leaf in leaves(term))


def lead(expression: Expression) -> str:
    """The lead model, that of the first leaf: it gives the defaults, encodes a known picture and decodes the result."""
    while not isinstance(expression, Prompt):
        expression = expression.terms[0]
    return expression.model


def walk(expression: Expression, path: Path = ()) -> Iterator[tuple[Path, Expression]]:
    """Every node with its place, parents first: the terms of an operator are at ("terms", i), the term of NOT too."""
    yield path, expression
    if not isinstance(expression, Prompt):
        for i, term in enumerate(expression.terms):
            yield from walk(term, (*path, "terms", i))


def leaf_paths(expression: Expression) -> tuple[Path, ...]:
    """Where the leaves are, in the order of :func:`leaves`."""
    return tuple(path for path, node in walk(expression) if isinstance(node, Prompt))


def conjuncts(expression: Expression) -> int:
    """How many prompts must hold together, at most: by how many the operators divide guidance.

    A convex mix of n guided scores gives each prompt an n-th of the guidance on average, so n times the scale of a
    single prompt is what guides each as strongly. OR divides nothing, since it follows one term; nor does a product,
    whose weights are 1 for each term.
    """
    if isinstance(expression, Prompt):
        return 1
    each = sorted((conjuncts(term) for term in expression.terms), reverse=True)
    match expression:
        case And() | Average() | Xor():
            return sum(each)
        case AtLeast(count=count):
            return sum(each[:count])
        case _:
            return each[0]


def has_density(expression: Expression) -> bool:
    """Whether the expression has a log-density of its own: all but a balanced AND."""
    return not (isinstance(expression, And) and expression.method is Method.BALANCED)


def check_tree(expression: Expression) -> None:
    """Refuse trees that are too deep or too large, and a balanced AND below the root.

    Raises:
        InvalidInputError: Its field is the path of the node at fault.
    """
    count = len(leaves(expression))
    if count > MAX_LEAVES:
        raise InvalidInputError(f"an expression has at most {MAX_LEAVES} prompts, got {count}", field=("terms",))
    for path, node in walk(expression):
        if isinstance(node, Prompt) and len(path) // 2 > MAX_DEPTH:
            detail = f"operators nest at most {MAX_DEPTH} deep, got {len(path) // 2}"
            raise InvalidInputError(detail, field=path)
        if path and not has_density(node):
            detail = (
                "a balanced AND has no log-density of its own, so it can only be the outermost operator; "
                "use a soft AND here"
            )
            raise InvalidInputError(detail, field=(*path, "method"))


def _check_sharpness(sharpness: float) -> None:
    if not 0 < sharpness < math.inf:
        raise InvalidInputError(f"sharpness must be finite and > 0, got {sharpness}", field=("sharpness",))


def _check_scale(scale: float) -> None:
    if not 0 <= scale < math.inf:
        raise InvalidInputError(f"the scale of NOT must be finite and ≥ 0, got {scale}", field=("scale",))


def _check_numbers(terms: "Sequence[Expression]", numbers: Sequence[float], name: str, least: int = 1) -> None:
    """Refuse an operator without terms, and numbers that are not finite or not one a term."""
    if not least <= len(terms) <= MAX_LEAVES:
        detail = f"this operator takes {least} to {MAX_LEAVES} terms, got {len(terms)}"
        raise InvalidInputError(detail, field=("terms",))
    if numbers and len(numbers) != len(terms):
        detail = f"{len(terms)} terms need {len(terms)} numbers ({name}), got {len(numbers)}"
        raise InvalidInputError(detail, field=("terms",))
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise InvalidInputError(f"{name} must be finite, got {number}", field=("terms", i, name))
