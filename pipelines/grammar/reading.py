"""From the text to the tree: :func:`parse`, and :func:`read`, which keeps where each part of the tree was written."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from pipelines.composition import (
    MAX_DEPTH,
    MAX_LEAVES,
    And,
    AtLeast,
    Expression,
    Method,
    Not,
    Operator,
    Or,
    Path,
    Prompt,
    Xor,
    check_tree,
)
from pipelines.errors import InvalidInputError
from pipelines.grammar.errors import GrammarError, UnknownModelInTextError
from pipelines.grammar.forms import FORMS, Form
from pipelines.grammar.syntax import span_of, syntax_tree, token_at, trees_of

if TYPE_CHECKING:
    from lark import Token, Tree

_RULES: Final[Mapping[str, type[Operator]]] = {"or": Or, "xor": Xor, "and": And, "not": Not, "at_least": AtLeast}
_CALLS: Final[Mapping[str, type[Operator]]] = {form.word: kind for kind, form in FORMS.items()}
_SUFFIXES: Final = {"model": "model", "lora": "lora", "negative": "negative_prompt"}
# Half a surrogate pair is no character, so it is not read as an escape.
_ESCAPE: Final = re.compile(r"""\\(?:(["'\\@])|u((?![dD][89a-fA-F])[0-9a-fA-F]{4}))""")
# A model that was written inside the quotes, "a cat@sd15"; in "by @someone" a space stands before the sign.
_MODEL_INSIDE: Final = re.compile(r"\S@([\w.+-]+)\s*\Z")
_COUNT_DIGITS: Final = 9
_LONGEST_NAME: Final = 200


class Span(NamedTuple):
    """A stretch of the text in columns, the first of the text is 1; ``end`` is the column after its last character."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """An expression with its text.

    Attributes:
        expression: The tree.
        text: What it was read from.
        spans: Where each node stands, by its path as in :func:`pipelines.composition.walk`; and each written part of a
            node by its name below that path: ("terms", 1, "model"), ("temperature",), ("terms", 0, "bias").
    """

    expression: Expression
    text: str
    spans: Mapping[Path, Span]

    def at(self, path: Path) -> Span:
        """Where a part of the tree stands; of one that was not written, where the innermost part around it stands."""
        return _innermost(self.spans, path)

    def pointed(self, error: InvalidInputError) -> GrammarError:
        """An error whose field is a path in the tree, as one that tells the column in the text."""
        return GrammarError(error.detail, self.text, self.at(error.field).start)


def parse(text: str, *, default_model: str, models: Collection[str]) -> Expression:
    """The expression that a text stands for.

    Args:
        text: As described in :mod:`pipelines.grammar`.
        default_model: The model of prompts that name none.
        models: The models that prompts may name.

    Raises:
        GrammarError: The text does not have the form, or its expression has no meaning; tells the column.
        UnknownModelInTextError: It names a model that is not among ``models``.
    """
    return read(text, default_model=default_model, models=models).expression


def read(text: str, *, default_model: str, models: Collection[str]) -> Reading:
    """As :func:`parse`, with where in the text each part of the tree stands."""
    reader = _Reader(text, default_model, models)
    (tree,) = trees_of(syntax_tree(text))
    if tree.data == "weighted":
        reader.refuse("a number after a term belongs to an operator around it, but there is none", tree.children[1])
    reading = Reading(reader.node(tree, ()), text, MappingProxyType(reader.spans))
    try:
        check_tree(reading.expression)
    except InvalidInputError as error:
        raise reading.pointed(error) from None
    return reading


class _Reader:
    """Makes the nodes of one text, and notes where they stand."""

    def __init__(self, text: str, default_model: str, models: Collection[str]) -> None:
        self.spans: dict[Path, Span] = {}
        self._text, self._default_model, self._models = text, default_model, models
        self._leaves = 0

    def refuse(self, detail: str, where: "Tree[Token] | Token") -> NoReturn:
        """Raise a :class:`GrammarError` at a part of the text."""
        raise GrammarError(detail, self._text, span_of(where)[0] + 1)

    def node(self, tree: "Tree[Token]", path: Path) -> Expression:
        """The node of a tree that has no number."""
        while tree.data == "paren":
            (tree,) = trees_of(tree)
            if tree.data == "weighted":
                detail = 'write the number after the parenthesis; to weight words in a prompt, quote it: "(a cat:1.2)"'
                self.refuse(detail, tree.children[1])
        self._note(path, tree)
        return self._leaf(tree, path) if tree.data == "leaf" else self._operator(tree, path)

    def _note(self, path: Path, where: "Tree[Token] | Token") -> None:
        start, end = span_of(where)
        self.spans[path] = Span(start + 1, end + 1)

    def _leaf(self, tree: "Tree[Token]", path: Path) -> Prompt:
        self._leaves += 1
        if self._leaves > MAX_LEAVES:
            self.refuse(f"an expression has at most {MAX_LEAVES} prompts; this one is too many", tree)
        self._check_prompt(token_at(tree, 0))
        self._note((*path, "prompt"), token_at(tree, 0))
        model, negative = self._default_model, None
        adapters: dict[str, float] = {}
        for suffix in trees_of(tree):
            part = _SUFFIXES[suffix.data]
            if part != "lora" and (*path, part) in self.spans:
                self.refuse(f"a prompt has at most one {part.replace('_', ' ')}", suffix)
            if (*path, part) not in self.spans:
                self._note((*path, part), suffix)
            if part == "model":
                model = self._model(suffix)
            elif part == "negative_prompt":
                negative = _said(token_at(suffix, 1))
            else:
                name, scale = self._lora(suffix)
                if name in adapters:
                    self.refuse(f"the LoRA {_short(name)!r} is given twice", suffix)
                adapters[name] = scale
        return Prompt(_said(token_at(tree, 0)), model, tuple(sorted(adapters.items())), negative)

    def _check_prompt(self, token: "Token") -> None:
        """Refuse a quoted prompt that ends in @NAME: who writes that means a model, and would get another one."""
        if token.type == "QUOTED" and (found := _MODEL_INSIDE.search(_ESCAPE.sub(_without_signs, token[1:-1]))):
            detail = f"write the model after the closing quotation mark, @{_short(found[1])}; write \\@ for a plain @"
            raise GrammarError(detail, self._text, span_of(token)[0] + token.rindex("@") + 1)

    def _model(self, tree: "Tree[Token]") -> str:
        name = _said(token_at(tree, 0))
        if name not in self._models:
            raise UnknownModelInTextError(_short(name), tuple(self._models), self._text, span_of(tree)[0] + 1)
        return name

    def _lora(self, tree: "Tree[Token]") -> tuple[str, float]:
        scale = self._number(token_at(tree, 2)) if len(tree.children) > 2 else 1.0
        return _said(token_at(tree, 1)), scale

    def _operator(self, tree: "Tree[Token]", path: Path) -> Operator:
        # What nests deeper is not walked into: no text can exhaust the stack.
        if len(path) // 2 >= MAX_DEPTH:
            self.refuse(f"operators nest at most {MAX_DEPTH} deep; this one is too deep", tree)
        kind = _CALLS[token_at(tree, 0)] if tree.data == "call" else _RULES[tree.data]
        form = FORMS[kind]
        subtrees = trees_of(tree)
        arguments: dict[str, Any] = self._options(form, [t for t in subtrees if t.data == "options"], path)
        if kind is AtLeast:
            arguments["count"] = self._count(token_at(tree, 1), path)
        terms, numbers = self._terms(form, [t for t in subtrees if t.data != "options"], path)
        if numbers:
            arguments[form.numbers] = numbers
        arguments |= {"term": terms[0]} if kind is Not else {"terms": terms}
        try:
            return kind(**arguments)
        except InvalidInputError as error:
            where = _innermost(self.spans, (*path, *error.field))
            raise GrammarError(error.detail, self._text, where.start) from None

    def _terms(
        self, form: Form, trees: "Sequence[Tree[Token]]", path: Path
    ) -> tuple[tuple[Expression, ...], tuple[float, ...]]:
        """The terms of an operator and their numbers; no numbers where none is written."""
        terms: list[Expression] = []
        numbers: dict[int, float] = {}
        for i, tree in enumerate(trees):
            here: Path = (*path, "terms", i)
            if tree.data == "weighted":
                number = token_at(tree, 1)
                if not form.numbers:
                    self.refuse(_no_number(form), number)
                self._note((*here, form.number), number)
                numbers[i] = self._number(number)
                (tree,) = trees_of(tree)  # noqa: PLW2901  the term itself
            terms.append(self.node(tree, here))
        written = tuple(numbers.get(i, form.unwritten) for i in range(len(terms))) if numbers else ()
        return tuple(terms), written

    def _options(self, form: Form, brackets: "Sequence[Tree[Token]]", path: Path) -> dict[str, float | Method]:
        """What the brackets of an operator say, by the node's attributes."""
        if len(brackets) > 1:
            self.refuse(f"the options of a chain are written once, after any one {form.word}", brackets[1])
        options: dict[str, float | Method] = {}
        for option in (option for bracket in brackets for option in trees_of(bracket)):
            name, value = self._option(form, option)
            if name in options:
                self.refuse(f"the {name} is given twice", option)
            options[name] = value
            self._note((*path, name), option)
        return options

    def _option(self, form: Form, option: "Tree[Token]") -> tuple[str, float | Method]:
        first = token_at(option, 0)
        if first.type == "NUMBER" and form is FORMS[Not]:
            return "scale", self._number(first)
        if first.type == "OPTION" and len(option.children) == 1 and "method" in form.options and first in set(Method):
            return "method", Method(first)
        if len(option.children) == 2 and isinstance(form.options.get(first), float):
            return str(first), self._number(token_at(option, 1))
        return self.refuse(_allowed_options(form), option)

    def _number(self, token: "Token") -> float:
        number = float(token)
        if not math.isfinite(number):
            self.refuse("the number is too large", token)
        return number

    def _count(self, token: "Token", path: Path) -> int:
        # Python refuses to read whole numbers of thousands of digits.
        if len(token) > _COUNT_DIGITS:
            self.refuse("the number is too large", token)
        self._note((*path, "count"), token)
        return int(token)


def _innermost(spans: Mapping[Path, Span], path: Path) -> Span:
    while path not in spans:
        path = path[:-1]
    return spans[path]


def _said(token: "Token") -> str:
    """The text that a bare or quoted token stands for; bare words come with one space between them."""
    if token.type == "QUOTED":
        return _ESCAPE.sub(_character, token[1:-1])
    return " ".join(token.split())


def _character(escape: re.Match[str]) -> str:
    return escape[1] or chr(int(escape[2], 16))


def _without_signs(escape: re.Match[str]) -> str:
    """The character, but another one for an escaped @."""
    return "\0" if escape[1] == "@" else _character(escape)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"


def _no_number(form: Form) -> str:
    if form is FORMS[Not]:
        return (
            "NOT takes no number for its term: write NOT[1.5] a for its scale, (NOT a):1.5 for the operator around it"
        )
    return f"{form.word} takes no numbers for its terms"


def _allowed_options(form: Form) -> str:
    if form is FORMS[Not]:
        return "in brackets NOT takes its scale: NOT[1.5]"
    allowed: list[str] = list(Method) if "method" in form.options else []
    allowed += [f"{name}=NUMBER" for name, value in form.options.items() if not isinstance(value, Method)]
    return f"in brackets {form.word} takes {', '.join(allowed)}" if allowed else f"{form.word} has no options"
