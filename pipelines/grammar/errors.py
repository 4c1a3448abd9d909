"""What can be wrong with a text, and where."""

import unicodedata
from typing import Final

from pipelines.errors import InvalidInputError, UnknownModelError

_FIELD: Final = ("expression",)
_BEFORE: Final = 50
_AFTER: Final = 22
_GAP: Final = "…"
_UNPRINTABLE: Final = "\N{REPLACEMENT CHARACTER}"


class GrammarError(InvalidInputError):
    """A text that is no expression, or an expression without meaning.

    Args:
        detail: What is wrong and what is allowed.
        text: The whole text.
        column: Where in it, in characters from its beginning, the first is 1.

    Attributes:
        column: As above.
        pointer_text: Two lines for a terminal: the text around the column, and a caret below it.
    """

    def __init__(self, detail: str, text: str, column: int) -> None:
        super().__init__(f"at column {column}: {detail}", field=_FIELD)
        self.column = column
        self.pointer_text = point(text, column)


class UnknownModelInTextError(UnknownModelError):
    """A model that the catalogue does not hold, named by a text.

    Args:
        name: What was asked for.
        known: What there is.
        text: The whole text.
        column: Where in it the model is named, as in :class:`GrammarError`.
    """

    def __init__(self, name: str, known: tuple[str, ...], text: str, column: int) -> None:
        super().__init__(name, known, field=_FIELD)
        self.args = (f"at column {column}: {self}",)
        self.column = column
        self.pointer_text = point(text, column)


def point(text: str, column: int) -> str:
    """One line of the text around a column, and a line with a caret below that column.

    White space becomes a space and what cannot be printed a replacement character, so that the text cannot steer the
    terminal; characters that take two cells, or none, are counted as such.
    """
    at = column - 1
    begin, end = max(0, at - _BEFORE), at + _AFTER
    before = _shown(text[begin:at])
    if begin > 0:
        before = _GAP + before
    after = _shown(text[at:end]) + (_GAP if end < len(text) else "")
    return f"{before}{after}\n{' ' * sum(map(_cells, before))}^"


def _shown(text: str) -> str:
    return "".join(" " if c.isspace() else c if c.isprintable() else _UNPRINTABLE for c in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
