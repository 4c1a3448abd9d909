"""What reading and writing need to know of an operator beyond the node itself."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Final, NamedTuple

from pipelines.composition import TRAITS, Method, Operator

_ATTRIBUTES: Final = {"": ("", 0.0), "bias": ("biases", 0.0), "lift": ("lifts", 0.0), "weight": ("weights", 1.0)}


class Form(NamedTuple):
    """How an operator is written.

    Attributes:
        word: Its word: "AND", "AT LEAST".
        number: What the number of a term means, as in :class:`pipelines.composition.Traits`.
        numbers: The node's attribute with the numbers of all terms; "" where terms have none.
        unwritten: The number of a term without one, where another term has one.
        options: What may stand in brackets, with the values that hold where it does not.
    """

    word: str
    number: str
    numbers: str
    unwritten: float
    options: Mapping[str, float | Method]


def _form(kind: type[Operator]) -> Form:
    traits = TRAITS[kind]
    options = {field.name: field.default for field in fields(kind) if isinstance(field.default, float | Method)}
    word = traits.word.upper().replace("_", " ")
    return Form(word, traits.number, *_ATTRIBUTES[traits.number], MappingProxyType(options))


FORMS: Final[Mapping[type[Operator], Form]] = MappingProxyType({kind: _form(kind) for kind in TRAITS})
"""The operators' forms; the grammar in :mod:`pipelines.grammar.syntax` says where their words may stand."""
