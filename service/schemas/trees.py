"""The tree form of an expression: ``{"and": ["a cat", {"or": ["a dog", "a fox"]}]}``.

One class an operator, named by its key. A term is read by its key alone, so that a fault is told of the operator that
was meant. Depth and size are bounded before anything is read (:func:`check_size`).
"""

from typing import Annotated, Any, ClassVar, Final

from pydantic import ConfigDict, Field, RootModel, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipelines.composition import (
    MAX_DEPTH,
    MAX_LEAVES,
    TRAITS,
    And,
    AtLeast,
    Average,
    Expression,
    Method,
    Not,
    Operator,
    Or,
    Path,
    Product,
    Prompt,
    Xor,
)
from pipelines.grammar.forms import FORMS
from service.schemas import habits
from service.schemas.closed import Closed
from service.schemas.fields import (
    LORAS,
    NAME_LENGTH,
    NATS,
    PROMPT_LENGTH,
    Name,
    Real,
    Scale,
    Sharpness,
    Temperature,
    Text,
    Whole,
    default,
)

Terms = Annotated[list["Term"], Field(min_length=1, max_length=MAX_LEAVES)]
Weight = Annotated[
    Real | None,
    Field(
        ge=-NATS,
        le=NATS,
        allow_inf_nan=False,
        description="This term's number for the operator around it. OR, XOR: log prior odds in nats, default 0. AND: "
        "lift of its log-density in nats, default 0. Average, product: weight, default 1.",
    ),
]


def _or_a_string(schema: dict[str, Any]) -> None:
    """Let the published schema of a component admit a bare string, as the parser does."""
    whole = dict(schema)
    schema.clear()
    schema.update({"anyOf": [whole, {"type": "string", "maxLength": PROMPT_LENGTH}], "title": whole.get("title")})


class Component(Closed):
    """One density of a composition. A bare string stands for a prompt to the default model."""

    model_config = ConfigDict(json_schema_extra=_or_a_string)
    habits = habits.COMPONENT

    prompt: Annotated[Text, Field(description="The prompt; empty for the model's unconditional density.")]
    model: Annotated[
        str | None,
        Field(min_length=1, max_length=NAME_LENGTH, description="A name from /v1/models. Default: the first."),
    ] = None
    weight: Weight = None
    lora: Annotated[
        dict[Name, Annotated[Real, Field(ge=-10, le=10, allow_inf_nan=False)]],
        Field(max_length=LORAS, description="LoRAs of the model: name → scale."),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    negative_prompt: Annotated[
        str | None, Field(max_length=PROMPT_LENGTH, description="For this component. Default: the request's.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"prompt": value} if isinstance(value, str) else value

    def leaf(self, default_model: str) -> Prompt:
        """The component as a leaf."""
        adapters = tuple(sorted(self.lora.items()))
        return Prompt(self.prompt, self.model or default_model, adapters, self.negative_prompt)


class _Operation(Closed):
    """What the operators share."""

    habits = habits.OPERATION
    operator: ClassVar[type[Operator]]

    weight: Weight = None

    @property
    def parts(self) -> "list[Part]":
        """The terms."""
        raise NotImplementedError

    def node(self, terms: tuple[Expression, ...]) -> Operator:
        """The operator over terms that are built already.

        Raises:
            InvalidInputError: It has no meaning; the field is a path from this node.
        """
        raise NotImplementedError


class _Chain(_Operation):
    """An operator over several terms."""

    terms: Terms

    @property
    def parts(self) -> "list[Part]":
        """The terms."""
        return [term.root for term in self.terms]

    @property
    def numbers(self) -> tuple[float, ...]:
        """The terms' weights, () where none is written."""
        written = [part.weight for part in self.parts]
        unwritten = FORMS[self.operator].unwritten
        return tuple(unwritten if w is None else w for w in written) if any(w is not None for w in written) else ()


class OrTerm(_Chain):
    """A picture that any of the terms explains."""

    operator = Or
    terms: Terms = Field(alias="or")
    temperature: Temperature = default(Or, "temperature")

    def node(self, terms: tuple[Expression, ...]) -> Or:
        """The operator over built terms."""
        return Or(terms, self.temperature, self.numbers)


class AndTerm(_Chain):
    """A picture that shows all terms ("soft"), or that all explain equally well ("balanced", at the root only)."""

    operator = And
    terms: Terms = Field(alias="and")
    method: Method = default(And, "method")
    sharpness: Sharpness = default(And, "sharpness")

    def node(self, terms: tuple[Expression, ...]) -> And:
        """The operator over built terms."""
        return And(terms, self.numbers, self.method, self.sharpness)


class XorTerm(_Chain):
    """A picture of exactly one of the terms."""

    operator = Xor
    terms: Annotated[Terms, Field(alias="xor", min_length=2)]
    sharpness: Sharpness = default(Xor, "sharpness")
    scale: Scale = default(Xor, "scale")

    def node(self, terms: tuple[Expression, ...]) -> Xor:
        """The operator over built terms."""
        return Xor(terms, self.numbers, self.sharpness, self.scale)


class AtLeastTerm(_Chain):
    """A picture of at least `count` of the terms."""

    operator = AtLeast
    terms: Terms = Field(alias="at_least")
    count: Annotated[Whole, Field(ge=1, le=MAX_LEAVES)]
    sharpness: Sharpness = default(AtLeast, "sharpness")

    def node(self, terms: tuple[Expression, ...]) -> AtLeast:
        """The operator over built terms."""
        return AtLeast(self.count, terms, self.sharpness)


class NotTerm(_Operation):
    """A picture away from the term."""

    operator = Not
    term: "Term" = Field(alias="not")
    scale: Scale = default(Not, "scale")

    @property
    def parts(self) -> "list[Part]":
        """The one term."""
        return [self.term.root]

    def node(self, terms: tuple[Expression, ...]) -> Not:
        """The operator over its built term."""
        return Not(terms[0], self.scale)


class AverageTerm(_Chain):
    """A picture from the geometric mean with fixed weights."""

    operator = Average
    terms: Terms = Field(alias="average")

    def node(self, terms: tuple[Expression, ...]) -> Average:
        """The operator over built terms."""
        return Average(terms, self.numbers)


class ProductTerm(_Chain):
    """A picture from the product of the terms' densities over the unconditional one."""

    operator = Product
    terms: Terms = Field(alias="product")

    def node(self, terms: tuple[Expression, ...]) -> Product:
        """The operator over built terms."""
        return Product(terms, self.numbers)


Part = Component | OrTerm | AndTerm | XorTerm | AtLeastTerm | NotTerm | AverageTerm | ProductTerm
OPERATIONS: Final[dict[str, type[_Operation]]] = {
    TRAITS[kind.operator].word: kind
    for kind in (OrTerm, AndTerm, XorTerm, AtLeastTerm, NotTerm, AverageTerm, ProductTerm)
}
"""The operators by their keys."""


class Term(RootModel[Part]):
    """A prompt, or an operator over terms."""

    @model_validator(mode="before")
    @classmethod
    def _by_its_key(cls, value: Any) -> Any:
        if isinstance(value, str | Component | _Operation):
            return Component(prompt=value) if isinstance(value, str) else value
        return _kind(value).model_validate(value)


def _kind(value: object) -> type[Component | _Operation]:
    """What a term is, by the key that it has."""
    keys = [key for key in ("prompt", *OPERATIONS) if key in value] if isinstance(value, dict) else []
    if len(keys) != 1:
        allowed = ", ".join(("prompt", *OPERATIONS))
        found = f"; this one has {' and '.join(keys)}" if keys else ""
        raise PydanticCustomError(
            "term",
            "a term is a string, or an object with exactly one of {allowed}{found}",
            {"allowed": allowed, "found": found},
        )
    return OPERATIONS.get(keys[0], Component)


def check_size(tree: object) -> None:
    """Refuse a tree that nests too deep or has too many ends, before anything walks into it.

    Args:
        tree: As JSON has it.

    Raises:
        ValidationError: It names the first term too many.
    """
    waiting: list[tuple[object, Path, int]] = [(tree, (), 0)]
    ends = 0
    while waiting:
        term, path, depth = waiting.pop()
        inner = _inner(term)
        ends += not inner
        if ends > MAX_LEAVES:
            raise fault(path, f"an expression has at most {MAX_LEAVES} prompts; this one is too many")
        if inner and depth == MAX_DEPTH:
            raise fault(path, f"operators nest at most {MAX_DEPTH} deep; this one is too deep")
        waiting += [(part, (*path, *place), depth + 1) for place, part in reversed(inner)]


def _inner(term: object) -> list[tuple[Path, object]]:
    """Where the terms of an operator are, and what stands there; nothing for what is no operator."""
    for key in OPERATIONS:
        if isinstance(term, dict) and key in term:
            value = term[key]
            return [((key, i), part) for i, part in enumerate(value)] if isinstance(value, list) else [((key,), value)]
    return []


def fault(path: Path, detail: str) -> ValidationError:
    """A fault of the wire at a place."""
    kind = PydanticCustomError("expression", "{detail}", {"detail": detail})
    return ValidationError.from_exception_data("expression", [InitErrorDetails(type=kind, loc=path, input=None)])
