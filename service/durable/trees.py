"""Expressions as JSON: every node with all that it is made of; no default is left out, so later defaults change none.

{"prompt": "a cat", "model": "sd15", "adapters": [["ink", 0.8]], "negative": null}
{"operator": "or", "terms": […], "temperature": 1.0, "biases": []}
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from pipelines.composition import TRAITS, Expression, Method, Not, Operator, Prompt
from pipelines.errors import InvalidInputError
from service.durable.blobs import UnreadableError

_OPERATORS: Final[Mapping[str, type[Operator]]] = {traits.word: kind for kind, traits in TRAITS.items()}
_TERMS: Final = {"term", "terms"}


def write_tree(node: Expression) -> dict[str, Any]:
    """An expression as JSON."""
    if isinstance(node, Prompt):
        adapters = [list(adapter) for adapter in node.adapters]
        return {"prompt": node.text, "model": node.model, "adapters": adapters, "negative": node.negative}
    own = {each.name: getattr(node, each.name) for each in fields(node) if each.name not in _TERMS}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
    return {"operator": TRAITS[type(node)].word, "terms": [write_tree(term) for term in node.terms], **plain}


def read_tree(written: Mapping[str, Any]) -> Expression:
    """The expression that was written.

    Raises:
        UnreadableError: It was not written by :func:`write_tree`, or by one that knew other operators.
    """
    try:
        return _read(dict(written))
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInputError) as error:
        raise UnreadableError(f"this is no expression: {error}") from error


def _read(written: dict[str, Any]) -> Expression:
    if "prompt" in written:
        adapters = tuple((str(name), float(scale)) for name, scale in written["adapters"])
        return Prompt(written["prompt"], written["model"], adapters, written["negative"])
    kind = _OPERATORS[written.pop("operator")]
    terms = tuple(_read(dict(term)) for term in written.pop("terms"))
    own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
    if "method" in own:
        own["method"] = Method(own["method"])
    made: Callable[..., Expression] = kind
    return made(*terms, **own) if kind is Not else made(terms=terms, **own)
