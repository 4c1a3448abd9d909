"""The form of the text: which words and signs may follow one another, and what is said where they do not."""

import re
from collections.abc import Collection, Sequence
from functools import cache
from string import Template
from typing import TYPE_CHECKING, Final, cast

from pipelines.composition import MAX_DEPTH
from pipelines.grammar.errors import GrammarError

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

MAX_TEXT: Final = 200_000
"""Characters of a text: more than the largest expression that the service takes, with every prompt at its bound."""
MAX_TOKENS: Final = 4096
"""Words and signs of a text, a prompt counted as one."""
MAX_PARENTHESES: Final = 2 * MAX_DEPTH
"""How deep parentheses may stand in one another: one pair an operator, and as many that are not needed."""

# What ends a bare word, as the inside of a character class.
_SIGNS: Final = r'\s"()\[\]{}<>@:\\'
# An operator word ends here: ANDROID, AND-gate and ORs are plain words.
_WORD_END: Final = rf"(?![^{_SIGNS},'])"
_OPERATOR: Final = rf"(?:AND|OR|XOR|NOT|AVERAGE|PRODUCT|AT\s+LEAST){_WORD_END}"

_QUOTED: Final = r"""(?:"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')"""


def _bare(signs: str) -> str:
    """Words up to the next operator or sign. Neighbouring parts share no character, so matching takes linear time."""
    return rf"(?!{_OPERATOR})[^{signs},'][^{signs}]*(?:\s+(?!{_OPERATOR})[^{signs}]+)*"


# ITEM is a bare prompt within a call, where commas separate. Rules with {prompt} exist once with each of the two, and
# the lexer looks only for what the parser's state allows.
_GRAMMAR: Final = Template(r"""
start: or{BARE}

?or{prompt}: xor{prompt} (OR options{prompt}? xor{prompt})*
?xor{prompt}: and{prompt} (XOR options{prompt}? and{prompt})*
?and{prompt}: unary{prompt} (AND options{prompt}? unary{prompt} | not{prompt})*
?unary{prompt}: not{prompt} | term{prompt}
not{prompt}: NOT options{prompt}? unary{prompt}
?term{prompt}: atom{prompt} | weighted{prompt}
weighted{prompt}: atom{prompt} ":" NUMBER
?atom{prompt}: leaf{prompt} | paren{prompt} | call | at_least
paren{prompt}: "(" or{prompt} ")"

call: (AND | OR | XOR | AVERAGE | PRODUCT) options{ITEM}? _terms
at_least: AT_LEAST COUNT OF options{ITEM}? _terms
_terms: "(" or{ITEM} ("," or{ITEM})* ")"
options{prompt}: "[" option ("," option)* "]"
option: OPTION ("=" NUMBER)? | NUMBER

leaf{prompt}: (prompt | QUOTED) (model | lora | negative)*
model: "@" (MODEL | QUOTED)
lora: LORA (LORA_NAME | QUOTED) (":" NUMBER)? ">"
negative: "{" NEGATIVE ":" (BARE | QUOTED) "}"

BARE: /$bare/
ITEM: /$item/
QUOTED: /$quoted/s
MODEL: /[^$signs,']+/
LORA: "<lora:"
LORA_NAME: /[^\s'":<>][^":<>]*/
NEGATIVE: "negative"
OPTION: /[A-Za-z_]+/
NUMBER: /[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?/
COUNT: /[0-9]+/
AND: /AND$end/
OR: /OR$end/
XOR: /XOR$end/
NOT: /NOT$end/
AVERAGE: /AVERAGE$end/
PRODUCT: /PRODUCT$end/
AT_LEAST: /AT\s+LEAST$end/
OF: /OF$end/
%ignore /\s+/
""").substitute(bare=_bare(_SIGNS), item=_bare(_SIGNS + ","), signs=_SIGNS, end=_WORD_END, quoted=_QUOTED)

_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_WORD: Final = re.compile(rf"[^{_SIGNS},]+")
_LOOKED_AT: Final = 24
_LOWER: Final = {"and", "or", "xor", "not"}
_SPLITTING: Final = set('"([]{}<>\\,')

# An operator outside of quotes and of LoRA tags. A quotation mark that is never closed takes all that follows, so
# matching takes linear time.
_DOUBLE: Final = r'"[^"\\]*(?:\\.[^"\\]*)*'
_SINGLE: Final = rf"(?<![^{_SIGNS}])'[^'\\]*(?:\\.[^'\\]*)*"
_CALLED: Final = rf"(?:AVERAGE|PRODUCT)\s*[\[(]|AT\s+LEAST\s+[0-9]+\s+OF{_WORD_END}"
_USED: Final = rf"(?<![^{_SIGNS}])(?:(?:AND|OR|XOR|NOT){_WORD_END}|{_CALLED})"
_OUTSIDE: Final = re.compile(
    rf"(?:{_DOUBLE}\"|{_SINGLE}'|<lora:[^<>]*>)|(?P<unclosed>{_DOUBLE}\Z|{_SINGLE}\Z)|(?P<operator>{_USED})", re.DOTALL
)
_INSIDE: Final = re.compile(_USED)
_ONE_QUOTED: Final = re.compile(rf"\s*(?:{_DOUBLE}\"|{_SINGLE}')\s*(?:[@<{{]|\Z)", re.DOTALL)

_PROMPT: Final = {"BARE", "ITEM"}
_CALLS: Final = {"AVERAGE", "PRODUCT", "OF"}
# Terminals in plain words, in the order in which they are listed; those that are not here (@, <lora:, { and [) are
# never the only ones allowed.
_ALLOWED: Final = {
    "MODEL": "the name of a model",
    "LORA_NAME": "the name of a LoRA",
    "OPTION": "an option",
    "NUMBER": "a number",
    "COUNT": "a whole number",
    "OF": "OF",
    "NEGATIVE": '"negative"',
    "AND": "an operator (AND, OR, XOR, NOT)",
    "LPAR": '"("',
    "COMMA": '","',
    "EQUAL": '"="',
    "RSQB": '"]"',
    "RBRACE": '"}"',
    "MORETHAN": '">"',
    "RPAR": '")"',
    "$END": "the end of the text",
}


@cache
def _parser() -> "Lark":
    """The LALR(1) parser, built when the first text comes: importing lark and building take longer than any text."""
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True)


def is_expression(text: str) -> bool:
    """Whether a text means an expression where most texts are plain prompts.

    It does if it uses an operator outside of quotes, or if it is one quoted prompt: ``"a cat"@sd15``. AND, OR, XOR and
    NOT are used wherever they stand as words of their own, AVERAGE and PRODUCT only before a parenthesis or a bracket,
    AT LEAST only before a count and OF: "PRODUCT PHOTO of a shoe" is a prompt. Whether the text can be read is another
    question.
    """
    if _ONE_QUOTED.match(text):
        return True
    for found in _OUTSIDE.finditer(text):
        if found["operator"]:
            return True
        if found["unclosed"]:  # reading it will tell where
            return _INSIDE.search(found["unclosed"]) is not None
    return False


def syntax_tree(text: str) -> "Tree[Token]":
    """The words and signs of a text as a tree.

    Raises:
        GrammarError: The text is too long, or it does not have the form that the grammar asks for.
    """
    from lark.exceptions import UnexpectedInput, UnexpectedToken

    _check_characters(text)
    parser = _parser().parse_interactive(text)
    tokens: list[Token] = []
    open_parentheses = 0
    try:
        for token in parser.iter_parse():
            tokens.append(token)
            open_parentheses += (token.type == "LPAR") - (token.type == "RPAR")
            if open_parentheses > MAX_PARENTHESES:
                detail = f"parentheses nest at most {MAX_PARENTHESES} deep"
                raise GrammarError(detail, text, span_of(token)[0] + 1)
            if len(tokens) > MAX_TOKENS:
                detail = f"a text has at most {MAX_TOKENS} prompts, operators and signs in all"
                raise GrammarError(detail, text, span_of(token)[0] + 1)
        tree: Tree[Token] = parser.feed_eof(tokens[-1] if tokens else None)
    except UnexpectedInput as error:
        ended = isinstance(error, UnexpectedToken) and error.token.type == "$END"
        at = len(text.rstrip()) if ended else cast("int", error.pos_in_stream)
        raise _fault(text, at, parser.accepts(), [t for t in tokens if span_of(t)[1] <= at]) from None
    return tree


def span_of(part: "Tree[Token] | Token") -> tuple[int, int]:
    """Where a part of the text begins and ends, as offsets."""
    where = part if isinstance(part, str) else part.meta
    return where.start_pos or 0, where.end_pos or 0


def trees_of(tree: "Tree[Token]") -> "list[Tree[Token]]":
    """The parts of a tree that are trees themselves."""
    return [child for child in tree.children if not isinstance(child, str)]


def token_at(tree: "Tree[Token]", index: int) -> "Token":
    """The part at an index, which the grammar has as a token."""
    token = tree.children[index]
    assert isinstance(token, str)  # noqa: S101  for the type checker
    return token


def _check_characters(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise GrammarError(f"a text has at most {MAX_TEXT} characters, got {len(text)}", text, MAX_TEXT + 1)
    if found := _FORBIDDEN.search(text):
        code = f"{ord(found[0]):04x}"
        if "\ud800" <= found[0] <= "\udfff":
            detail = f"U+{code.upper()} is half a character: the text was decoded incorrectly"
        else:
            detail = f"control characters are not allowed; in quotes write this one as \\u{code}"
        raise GrammarError(detail, text, found.start() + 1)


def _fault(text: str, at: int, allowed: Collection[str], before: "Sequence[Token]") -> GrammarError:
    """What is wrong at an offset, in plain words, and how to mend it where that can be guessed.

    Args:
        text: The whole text.
        at: Where reading stopped.
        allowed: The terminals that may stand there.
        before: The tokens up to there.
    """
    rest = text[at : at + _LOOKED_AT].rstrip()
    if rest[:1] in {'"', "'"} and "QUOTED" in allowed:
        return GrammarError("this quotation mark is never closed", text, at + 1)
    last = before[-1].type if before else ""
    if last in {"AND", "OR", "XOR"} and "LPAR" in allowed and _PROMPT.isdisjoint(allowed):
        # It was taken for the word of a call, AND(a, b); far more likely the prompt before it is missing.
        return GrammarError(f"expected a prompt, got {last}", text, span_of(before[-1])[0] + 1)
    if last == "COLON" and len(before) > 1 and before[-2].type in _PROMPT:
        last = "WEIGHT"
    hint = _hint(rest, allowed, last)
    detail = f"expected {_expected(allowed)}, got {_found(rest)}"
    return GrammarError(f"{detail}; {hint}" if hint else detail, text, at + 1)


def _expected(allowed: Collection[str]) -> str:
    if not _PROMPT.isdisjoint(allowed):
        return "a prompt"
    phrases = [phrase for terminal, phrase in _ALLOWED.items() if terminal in allowed]
    if "COLON" in allowed and "AND" not in allowed:
        phrases.insert(0, '":"')
    return " or ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _found(rest: str) -> str:
    if not rest:
        return "the end of the text"
    if operator := re.match(_OPERATOR, rest):
        return " ".join(operator[0].split())
    if rest[0] in {'"', "'"}:
        return "a quotation mark"
    word = _WORD.match(rest)
    shown = word[0] if word else rest[0]
    return f'"{shown if len(shown) < _LOOKED_AT else shown[:-1] + "…"}"'


def _hint(rest: str, allowed: Collection[str], last: str) -> str:
    """How to mend it; empty where that cannot be guessed."""
    wants_prompt, wants_operator = not _PROMPT.isdisjoint(allowed), "AND" in allowed or "$END" in allowed
    word = _WORD.match(rest)
    hints = {
        f"{'AT LEAST' if last == 'OF' else last} takes its terms in parentheses, separated by commas; "
        "a prompt with this word needs quotes": last in _CALLS,
        "write a LoRA after its prompt, a cat<lora:name:0.8>; a prompt with < in it needs quotes": rest[:1] == "<",
        f"a prompt with {rest[:1]} in it needs quotes around all of it": last in _PROMPT and rest[:1] in _SPLITTING,
        "a prompt with : in it needs quotes around all of it": last == "WEIGHT",
        "a prompt that begins with a comma needs quotes": wants_prompt and rest[:1] == ",",
        'the empty prompt is written ""': wants_prompt and not rest,
        "commas separate terms only in a call, such as AVERAGE(a, b)": wants_operator and rest[:1] == ",",
        "this parenthesis was never opened": wants_operator and rest[:1] == ")",
        f"operators are upper case: {word and word[0].upper()}": wants_operator and word and word[0] in _LOWER,
        "a prompt with this word needs quotes": wants_operator and re.match(_OPERATOR, rest),
    }
    return next((hint for hint, fits in hints.items() if fits), "")
