"""Which part of the canvas is sent, and where the answer belongs."""

from __future__ import annotations

import math
from typing import Any, Iterable, Mapping, NamedTuple


class Rect(NamedTuple):
    """A rectangle of pixels; the canvas begins at (0, 0)."""

    x: int
    y: int
    width: int
    height: int

    def within(self, other: Rect) -> Rect:
        """What both have in common; of no width or height where that is nothing."""
        left, top = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.width, other.x + other.width)
        bottom = min(self.y + self.height, other.y + other.height)
        return Rect(left, top, max(0, right - left), max(0, bottom - top))


class Sizes(NamedTuple):
    """What sizes a request's models draw.

    Attributes:
        width: Of the pictures that they draw best.
        height: Likewise.
        multiple: Of which a picture's sides are multiples.
        fixed: Whether ``width`` × ``height`` is the only size there is.
    """

    width: int
    height: int
    multiple: int
    fixed: bool


class SizeError(ValueError):
    """A picture of this size cannot be drawn; in words for the person who asked."""


def sizes_of(models: Iterable[Mapping[str, Any]], expression: str) -> Sizes:
    """The sizes of the models that an expression may use: the default one, and each that it names with an @.

    What a model that is not loaded yet draws is not known; then the service is left to say what it thinks of a size.

    Args:
        models: As /v1/models tells them.
        expression: The text.
    """
    used = [m for m in models if m["loaded"] and (m["default"] or _names(expression, m["id"]))]
    multiples = [m["multiple"] for m in used if m["multiple"]]
    return Sizes(
        width=max((m["width"] or 0 for m in used), default=0),
        height=max((m["height"] or 0 for m in used), default=0),
        multiple=_lcm(multiples),
        fixed=any(m["multiple"] == 0 for m in used),
    )


def _names(expression: str, model: str) -> bool:
    """Whether a text may name a model; an @ inside a prompt looks the same, and costs only a larger region."""
    return f"@{model}" in expression or f'@"{model}"' in expression


def _lcm(numbers: Iterable[int]) -> int:
    """The least common multiple: ``math.lcm``, which Python 3.8 does not have."""
    least = 1
    for number in numbers:
        least = least * number // math.gcd(least, number)
    return least


def region(selection: Rect, canvas: Rect, sizes: Sizes) -> Rect:
    """The part of the canvas that is sent when a part is selected.

    As large as the picture that the models draw best, or larger where the selection is, with sides that they have:
    around the selection, inside the canvas where that is large enough.

    Args:
        selection: What is painted; it lies on the canvas.
        canvas: All there is.
        sizes: What the models draw.

    Raises:
        SizeError: The models draw one size only, and it does not fit.
    """
    if sizes.fixed:
        if selection.width > sizes.width or selection.height > sizes.height:
            raise SizeError(
                f"the model draws pictures of {sizes.width}×{sizes.height} only; the selection has "
                f"{selection.width}×{selection.height} pixels, so select less"
            )
        if canvas.width < sizes.width or canvas.height < sizes.height:
            raise SizeError(
                f"the model draws pictures of {sizes.width}×{sizes.height} only; the canvas has "
                f"{canvas.width}×{canvas.height} pixels, so make it larger"
            )
    x, width = _span(selection.x, selection.width, canvas.width, sizes.width, sizes.multiple)
    y, height = _span(selection.y, selection.height, canvas.height, sizes.height, sizes.multiple)
    return Rect(x, y, width, height)


def _span(start: int, length: int, limit: int, best: int, multiple: int) -> tuple[int, int]:
    """One side of :func:`region`: where it begins and how long it is."""
    wanted = min(limit, round_up(max(length, best), multiple))
    begin = start + (length - wanted) // 2
    return min(max(begin, 0), limit - wanted), wanted


def drawn_size(canvas: Rect, sizes: Sizes) -> Rect:
    """The size that is asked for to fill a canvas: up to the next that the models have.

    Raises:
        SizeError: The models draw one size only, and it is another.
    """
    if sizes.fixed and (canvas.width, canvas.height) != (sizes.width, sizes.height):
        raise SizeError(
            f"the model draws pictures of {sizes.width}×{sizes.height} only; the canvas has "
            f"{canvas.width}×{canvas.height} pixels"
        )
    return Rect(0, 0, round_up(canvas.width, sizes.multiple), round_up(canvas.height, sizes.multiple))


def round_up(number: int, multiple: int) -> int:
    """The next multiple from a number on."""
    return -(-number // multiple) * multiple
