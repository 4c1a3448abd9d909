"""From the tree to the text."""

import re
from typing import Final

from pipelines.composition import And, AtLeast, Expression, Not, Operator, Or, Prompt, Xor
from pipelines.grammar.forms import FORMS

# The tighter an operator, the higher; leaves and calls are the tightest.
_PRECEDENCE: Final[dict[type[Expression], int]] = {Or: 0, Xor: 1, And: 2, Not: 3}
_TIGHTEST: Final = 4
_PLAIN_NAME: Final = re.compile(r"[\w.+-]+")
_ESCAPED: Final = re.compile(r'["\\\x00-\x1f\x7f-\x9f]|(?<=\S)@(?=[\w.+-]+\s*\Z)')


def format(expression: Expression, *, default_model: str | None = None) -> str:  # noqa: A001  what undoes parse
    """The text of an expression: every prompt quoted, parentheses only where they are needed.

    ``parse(format(tree, default_model=m), default_model=m, models=…) == tree`` for every tree that
    :func:`pipelines.composition.check_tree` takes, as long as its numbers are finite.

    Args:
        expression: The tree.
        default_model: The model that is not written; None to write every leaf's.
    """
    if isinstance(expression, Prompt):
        return _leaf(expression, default_model)
    word, options = FORMS[type(expression)].word, _options(expression)
    if isinstance(expression, Not):
        return f"{word}{options} {_term(expression.term, '', default_model, _PRECEDENCE[Not])}"
    infix = _tightness(expression) < _TIGHTEST
    # A term of the same operator needs parentheses too: without them it would be one chain.
    least = _PRECEDENCE[type(expression)] + 1 if infix else 0
    numbers = _numbers(expression)
    terms = [_term(t, n, default_model, least) for t, n in zip(expression.terms, numbers, strict=True)]
    if infix:
        return f"{terms[0]} {word}{options} " + f" {word} ".join(terms[1:])
    if isinstance(expression, AtLeast):
        return f"{word} {expression.count} OF{options} ({', '.join(terms)})"
    return f"{word}{options}({', '.join(terms)})"


def _term(term: Expression, number: str, default_model: str | None, least: int) -> str:
    """A term with its number, in parentheses where its operator is looser than ``least`` or would take the number."""
    text = format(term, default_model=default_model)
    return f"({text}){number}" if _tightness(term) < (_TIGHTEST if number else least) else text + number


def _tightness(term: Expression) -> int:
    if isinstance(term, Or | And | Xor) and len(term.terms) == 1:  # written as a call
        return _TIGHTEST
    return _PRECEDENCE.get(type(term), _TIGHTEST)


def _numbers(operator: Operator) -> list[str]:
    """``:number`` of each term; only what differs from the unwritten number, unless the node's numbers all equal it."""
    form = FORMS[type(operator)]
    numbers: tuple[float, ...] = getattr(operator, form.numbers) if form.numbers else ()
    if not numbers:
        return [""] * len(operator.terms)
    unwritten = _number(form.unwritten)
    texts = ["" if _number(number) == unwritten else f":{_number(number)}" for number in numbers]
    return texts if any(texts) else [f":{unwritten}", *texts[1:]]


def _options(operator: Operator) -> str:
    written = []
    for name, default in FORMS[type(operator)].options.items():
        value = getattr(operator, name)
        if value != default:
            written.append(_option(operator, name, value))
    return f"[{', '.join(written)}]" if written else ""


def _option(operator: Operator, name: str, value: float | str) -> str:
    if isinstance(value, str):
        return str(value)
    return _number(value) if isinstance(operator, Not) else f"{name}={_number(value)}"


def _leaf(leaf: Prompt, default_model: str | None) -> str:
    model = "" if leaf.model == default_model else f"@{_name(leaf.model)}"
    adapters = (f"<lora:{_name(name)}{'' if scale == 1 else ':' + _number(scale)}>" for name, scale in leaf.adapters)
    negative = "" if leaf.negative is None else f"{{negative: {_quoted(leaf.negative)}}}"
    return _quoted(leaf.text) + model + "".join(adapters) + negative


def _name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else _quoted(name)


def _quoted(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    return "\\" + (f"u{ord(character):04x}" if character < " " or character > "~" else character)


def _number(number: float) -> str:
    """The shortest decimal that reads back as the same number: 2, 0.1, 1e-07."""
    return repr(float(number)).removesuffix(".0")
