"""Expressions as clients write them: a flat list, a tree or a text; and what clients call each part.

The science names a place in an expression by its path, ("terms", 1, "lift"). A client knows it by what it wrote: a key
of its JSON, or a column of its text. :class:`Written` keeps the two together, so that whatever is refused, now or when
the request is planned, is refused in the client's own words.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from pipelines import grammar
from pipelines.composition import TRAITS, AtLeast, Expression, Not, Operator, Path, Prompt, walk
from pipelines.errors import InvalidInputError, UnknownModelError
from pipelines.grammar.forms import FORMS
from service.schemas.fields import within_sentence
from service.schemas.trees import OPERATIONS, Component, Part, Term, check_size

_FIELD: Final = "expression"
_WEIGHT: Final = "weight"
_NUMBERS: Final = {traits.number for traits in TRAITS.values()}
# What the first part of a path in an expression may be; everything else names a parameter of the request.
_PARTS: Final = {"terms", "count", "prompt", "model", "lora"} | {
    name for form in FORMS.values() for name in form.options
}
# A LoRA in a plain prompt, with the blanks before it.
_LORA: Final = re.compile(r"[^\S\n]*<lora:(?P<name>[^<>:]+)(?::(?P<scale>[^<>]*))?>")
_NO_OPERATOR: Final = "a weight belongs to an operator around the term, but there is none"


@dataclass(frozen=True, slots=True)
class Written:
    """An expression and how its client wrote it.

    Attributes:
        expression: What it means.
        told: An error whose field is a path in the expression → the same error in the client's words.
    """

    expression: Expression
    told: Callable[[InvalidInputError], InvalidInputError]

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Raise what is wrong with a part of the expression in the client's words; other errors stay as they are."""
        try:
            yield
        except InvalidInputError as error:
            if not self._is_place(error.field):
                raise
            raise self.told(error) from None

    def _is_place(self, field: Path) -> bool:
        if field == ("negative_prompt",):  # of the request, unless the expression is a leaf with one of its own
            return isinstance(self.expression, Prompt) and self.expression.negative is not None
        return field[:1] != () and field[0] in _PARTS


def from_components(
    components: Sequence[Component], models: Sequence[str], node: Callable[[tuple[Prompt, ...]], Operator]
) -> Written:
    """An operator over a flat list.

    Args:
        components: The list.
        models: The names of the catalogue; the first is the default.
        node: Makes the operator over the leaves.

    Raises:
        InvalidInputError: The operator has no meaning.
        UnknownModelError: A component names a model that there is not.
    """

    def told(error: InvalidInputError) -> InvalidInputError:
        head, *rest = error.field
        return _moved(error, ("components", *_renamed(rest)) if head == "terms" else error.field)

    for i, component in enumerate(components):
        _check_model(component, models, ("components", i, "model"))
    try:
        return Written(node(tuple(component.leaf(models[0]) for component in components)), told)
    except InvalidInputError as error:
        raise told(error) from None


def from_tree(tree: Term, models: Sequence[str]) -> Written:
    """The expression of a tree.

    Args:
        tree: As it came over the wire.
        models: The names of the catalogue; the first is the default.

    Raises:
        InvalidInputError: It has no meaning.
        UnknownModelError: It names a model that there is not.
    """

    def told(error: InvalidInputError) -> InvalidInputError:
        return _moved(error, (_FIELD, *_wire_path(tree.root, error.field)))

    if tree.root.weight is not None:
        raise InvalidInputError(_NO_OPERATOR, field=(_FIELD, _WEIGHT))
    try:
        return Written(_built(tree.root, models, ()), told)
    except InvalidInputError as error:
        raise told(error) from None
    except UnknownModelError as error:
        raise UnknownModelError(error.name, error.known, field=(_FIELD, *_wire_path(tree.root, error.field))) from None


def from_text(text: str, models: Sequence[str]) -> Written:
    """The expression of a text; it keeps the bounds that trees keep.

    Args:
        text: As :mod:`pipelines.grammar` reads it.
        models: The names of the catalogue; the first is the default.

    Raises:
        GrammarError: It cannot be read, has no meaning, or passes a bound; tells the column.
        UnknownModelInTextError: It names a model that there is not.
    """
    reading = grammar.read(text, default_model=models[0], models=models)
    try:
        Term.model_validate(tree_of(reading.expression))
    except ValidationError as error:
        first = error.errors()[0]
        raise reading.pointed(InvalidInputError(within_sentence(first["msg"]), field=_path_of(first["loc"]))) from None
    return Written(reading.expression, reading.pointed)


def from_prompt(prompt: str, models: Sequence[str]) -> Written:
    """The expression of a prompt, for dialects whose prompts are plain text unless they use an operator.

    What :func:`pipelines.grammar.is_expression` takes for one is read by :func:`from_text`. Any other prompt reaches
    the model as it is, but for LoRA tags: ``<lora:name:0.8>``, wherever it stands, is for the whole prompt.

    Args:
        prompt: As the client wrote it.
        models: The names of the catalogue; the first is the default.

    Raises:
        InvalidInputError: It has no meaning, or passes a bound.
        UnknownModelError: It names a model that there is not.
    """
    if grammar.is_expression(prompt):
        return from_text(prompt, models)
    loras: dict[str, float] = {}
    for tag in _LORA.finditer(prompt):
        name = tag["name"].strip()
        if name in loras:
            raise grammar.GrammarError(f"the LoRA {name!r} is given twice", prompt, tag.start("name") + 1)
        loras[name] = _scale(tag, prompt)
    return from_wire({"prompt": _LORA.sub("", prompt) if loras else prompt, "lora": loras}, models)


def from_wire(tree: Any, models: Sequence[str]) -> Written:
    """The expression of a tree as JSON has it, within the bounds of the wire; see :func:`from_tree`."""
    try:
        check_size(tree)
        term = Term.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInputError(within_sentence(first["msg"]), field=(_FIELD, *first["loc"])) from None
    return from_tree(term, models)


def _scale(tag: re.Match[str], prompt: str) -> float:
    """The scale of a LoRA's tag; 1 where it has none."""
    if tag["scale"] is None:
        return 1.0
    try:
        scale = float(tag["scale"])
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise grammar.GrammarError("the scale of a LoRA must be a number", prompt, tag.start("scale") + 1)
    return scale


def tree_of(expression: Expression) -> dict[str, Any]:
    """The tree form of an expression, all of it written out: what :func:`from_tree` undoes."""
    if isinstance(expression, Prompt):
        leaf = {"prompt": expression.text, "model": expression.model, "lora": dict(expression.adapters)}
        return leaf if expression.negative is None else {**leaf, "negative_prompt": expression.negative}
    form = FORMS[type(expression)]
    terms = [tree_of(term) for term in expression.terms]
    for term, number in zip(terms, getattr(expression, form.numbers) if form.numbers else (), strict=False):
        term[_WEIGHT] = number
    tree = {TRAITS[type(expression)].word: terms[0] if isinstance(expression, Not) else terms}
    tree |= {name: getattr(expression, name) for name in form.options}
    return tree | {"count": expression.count} if isinstance(expression, AtLeast) else tree


def leaf_names(prompts: Sequence[Prompt]) -> list[str]:
    """A name for each leaf: its prompt, its model where prompts leave room for doubt, a number for twins.

    ["a cat", "a cat"] of one model → ["a cat", "a cat #2"]; of two → ["a cat @sd15", "a cat @sd21"].
    """
    several = len({prompt.model for prompt in prompts}) > 1
    names: list[str] = []
    for prompt in prompts:
        name = twin = f"{prompt.text} @{prompt.model}".strip() if several or not prompt.text else prompt.text
        count = 1
        while twin in names:
            count += 1
            twin = f"{name} #{count}"
        names.append(twin)
    return names


def node_names(expression: Expression) -> dict[Path, str]:
    """A name for each operator, by its place: its text form, with models where there are several.

    Nodes of the same text are the same density, and so have one name.
    """
    nodes = dict(walk(expression))
    models = {node.model for node in nodes.values() if isinstance(node, Prompt)}
    only = models.pop() if len(models) == 1 else None
    return {
        path: grammar.format(node, default_model=only) for path, node in nodes.items() if not isinstance(node, Prompt)
    }


def _built(part: Part, models: Sequence[str], path: Path) -> Expression:
    """The node of a part of a tree, its terms first; errors name paths from the root."""
    if isinstance(part, Component):
        _check_model(part, models, (*path, "model"))
        return part.leaf(models[0])
    terms = []
    for i, term in enumerate(part.parts):
        if term.weight is not None and not TRAITS[part.operator].number:
            detail = f"the operator {TRAITS[part.operator].word} takes no weights for its terms"
            raise InvalidInputError(detail, field=(*path, "terms", i, _WEIGHT))
        terms.append(_built(term, models, (*path, "terms", i)))
    try:
        return part.node(tuple(terms))
    except InvalidInputError as error:
        raise _moved(error, (*path, *error.field)) from None


def _check_model(component: Component, models: Sequence[str], field: Path) -> None:
    if component.model is not None and component.model not in models:
        raise UnknownModelError(component.model, tuple(models), field=field)


def _moved(error: InvalidInputError, field: Path) -> InvalidInputError:
    return InvalidInputError(error.detail, field=field)


def _renamed(path: Sequence[str | int]) -> Path:
    """The end of a path, where the wire calls biases, lifts and weights alike."""
    return (*path[:-1], _WEIGHT) if path and path[-1] in _NUMBERS else tuple(path)


def _wire_path(part: Part, path: Path) -> Path:
    """("terms", 1, "lift") of an ``and`` → ("and", 1, "weight")."""
    written: list[str | int] = []
    while path[:1] == ("terms",) and not isinstance(part, Component):
        word = TRAITS[part.operator].word
        written.append(word)
        if len(path) == 1:
            return tuple(written)
        index = int(path[1])
        if part.operator is not Not:
            written.append(index)
        part, path = part.parts[index], path[2:]
    return (*written, *_renamed(path))


def _path_of(loc: Sequence[str | int]) -> Path:
    """("and", 1, "weight") of the wire → ("terms", 1, "lift")."""
    path: list[str | int] = []
    number = _WEIGHT
    for key in loc:
        if path[-1:] == ["lora"]:  # what follows is a LoRA's name, which may be anything
            break
        if key in OPERATIONS:
            operator = OPERATIONS[str(key)].operator
            number = TRAITS[operator].number
            path += ["terms", 0] if operator is Not else ["terms"]
        else:
            path.append(number if key == _WEIGHT else key)
    return tuple(path)
