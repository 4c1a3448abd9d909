"""JSON as this service takes it: bounded before it is parsed, every key once, every number finite.

Parsing builds a tree of many times the text's size, so the text is counted first (:class:`Scan`), chunk by chunk as it
comes: what is too large is refused when the first excess arrives, whatever follows it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MOST_KEY_CHARACTERS: Final = 512
"""Of one key: errors repeat keys."""
# Searching takes about a millisecond for so many bytes, during which no other thread runs.
_WINDOW: Final = 1 << 18
_STRUCTURE: Final = re.compile(rb'[\[\]{},:"]')
# The inside of a string, up to its end or to a backslash whose second half is in the next chunk.
_INSIDE: Final = re.compile(rb'(?:[^"\\]++|\\[\s\S])*+')
_OPENING: Final = frozenset(b"[{")
_CLOSING: Final = frozenset(b"]}")
_QUOTE: Final = b'"'[0]


class NotJsonError(ValueError):
    """The text is no JSON, or is JSON that can be read in two ways."""


class TooManyItemsError(NotJsonError):
    """The text holds more keys and values than are allowed."""


class NestedTooDeepError(NotJsonError):
    """The text nests deeper than is allowed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a JSON text may be.

    Attributes:
        depth: How many brackets may be open at once.
        items: How many commas, colons and opening brackets there may be: a member of an object counts twice, once for
            its key, and an element of an array once.
    """

    depth: int
    items: int


class Scan:
    """Counts a JSON text that comes in chunks. It checks no syntax beyond what counting needs.

    Args:
        bounds: How large the text may be.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._depth = self._items = self._strings = 0
        self._in_string = self._escaped = False

    def feed(self, chunk: bytes) -> None:
        """Count further.

        Raises:
            TooManyItemsError: There are too many items by now.
            NestedTooDeepError: Too many brackets are open.
            NotJsonError: More brackets are closed than opened, or strings stand side by side.
        """
        position = 1 if self._escaped and chunk else 0
        self._escaped = self._escaped and not chunk
        while position < len(chunk):
            position = self._after_string(chunk, position) if self._in_string else self._to_string(chunk, position)

    def _after_string(self, chunk: bytes, position: int) -> int:
        """Where an open string ends, or the end of the chunk."""
        if chunk.find(b"\\", position) < 0:
            end = chunk.find(b'"', position)
            end = len(chunk) if end < 0 else end
        else:
            inside = _INSIDE.match(chunk, position)
            end = inside.end() if inside else position
        self._in_string = end == len(chunk) or chunk[end] != _QUOTE
        self._escaped = self._in_string and end < len(chunk)
        return end + 1

    def _to_string(self, chunk: bytes, position: int) -> int:
        """Behind the next quotation mark, or the end of the chunk."""
        for found in _STRUCTURE.finditer(chunk, position):
            sign = chunk[found.start()]
            if sign == _QUOTE:
                self._string()
                return found.end()
            if sign in _CLOSING:
                self._depth -= 1
                if self._depth < 0:
                    raise NotJsonError("the body is not JSON: it closes a bracket that it never opened")
                continue
            self._items += 1
            if self._items > self._bounds.items:
                detail = f"the body holds more than {self._bounds.items} keys and values (max_json_items)"
                raise TooManyItemsError(detail)
            if sign in _OPENING:
                self._depth += 1
                if self._depth > self._bounds.depth:
                    raise NestedTooDeepError(f"the body is nested more than {self._bounds.depth} deep (max_json_depth)")
        return len(chunk)

    def _string(self) -> None:
        self._in_string = True
        self._strings += 1
        # Each string but a lone one follows a comma, a colon or a bracket.
        if self._strings > self._items + 1:
            raise NotJsonError("the body is not JSON: strings stand side by side")


def windows(chunk: bytes) -> Sequence[bytes]:
    """A chunk in parts, none of which takes long to scan."""
    if len(chunk) <= _WINDOW:
        return (chunk,)
    return [chunk[start : start + _WINDOW] for start in range(0, len(chunk), _WINDOW)]


def parse(text: bytes | str) -> Any:
    """The value of a JSON text that was scanned already.

    Raises:
        NotJsonError: It is no JSON in UTF-8, has a key twice in one object, or a number that is not finite.
    """
    try:
        written = text if isinstance(text, str) else text.decode("utf-8-sig")
        del text  # a large one need not be there thrice
        return json.loads(
            written,
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotJsonError(f"the body is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at {where}") from None
    except NotJsonError:
        raise
    except UnicodeDecodeError:
        raise NotJsonError("the body is not JSON: its text is not UTF-8") from None
    except ValueError:
        raise NotJsonError("the body is not JSON that can be read: a number has too many digits") from None


def read(text: str, bounds: Bounds) -> Any:
    """Scan and parse a whole text; see :class:`Scan` and :func:`parse` for what is raised."""
    scan = Scan(bounds)
    for window in windows(text.encode()):
        scan.feed(window)
    return parse(text)


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its members; a key that is there twice would mean one thing here and another elsewhere."""
    read = dict(members)
    for key in read:
        if len(key) > MOST_KEY_CHARACTERS:
            raise NotJsonError(f"the body has a key of more than {MOST_KEY_CHARACTERS} characters")
    if len(read) < len(members):
        [(twice, _)] = Counter(key for key, _ in members).most_common(1)
        raise NotJsonError(f"the body has the key {json.dumps(twice)} twice in one object")
    return read


def _no_number(name: str) -> float:
    raise NotJsonError(f"the body is not JSON: {name} is no number there")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise NotJsonError("the body has a number that is too large")
    return number
