"""Verdicts on pictures of shapes, by the oracle that reads them (:mod:`pipelines.builtin.oracle`)."""

from collections.abc import Sequence
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from evaluation.formulas import Formula
from pipelines.builtin.captions import Caption, Phrase
from pipelines.builtin.oracle import Found, read_picture, well_formed
from pipelines.builtin.scenes import COLOURS, SHAPES

BOTH, ANY, FORMED = "all there", "at least one", "well formed"


@cache
def read_caption(text: str) -> Caption:
    """The caption of a text: each phrase names a colour, a shape, both, or neither ("a shape")."""
    phrases = []
    for phrase in text.split(" and "):
        words = phrase.removeprefix("a ").split()
        colour = next((word for word in words if word in COLOURS), None)
        shape = next((word for word in words if word in SHAPES), None)
        if str(Phrase(colour, shape)) != phrase:
            raise ValueError(f"{phrase!r} is no phrase of a caption, such as 'a red circle', 'a circle', 'a red shape'")
        phrases.append(Phrase(colour, shape))
    return Caption(tuple(phrases))


def shows(found: Sequence[Found], caption: str) -> bool:
    """Whether every thing that the caption names can be found in a picture, each in a well-formed shape of its own."""
    phrases = read_caption(caption).phrases
    things = [patch for patch in found if patch.shape is not None]
    orders = permutations(things, len(phrases))
    return any(all(_fits(p, t) for p, t in zip(phrases, order, strict=True)) for order in orders)


def _fits(phrase: Phrase, patch: Found) -> bool:
    return phrase.colour in (None, patch.colour) and phrase.shape in (None, patch.shape)


def satisfies(found: Sequence[Found], formula: Formula) -> bool:
    """Whether a formula is true of a picture."""
    return formula.holds(lambda caption: shows(found, caption))


def read(pictures: NDArray[np.uint8]) -> list[list[Found]]:
    """What the oracle finds in (B, height, width, 3) pictures."""
    return [read_picture(picture) for picture in pictures]


def compositions(found: Sequence[list[Found]], captions: Sequence[Sequence[str]]) -> dict[str, list[bool]]:
    """The verdicts on pictures that should hold several things: all there, at least one, well formed.

    Args:
        found: What was read, one list a picture.
        captions: What each picture was asked for.
    """
    pairs = list(zip(found, captions, strict=True))
    return {
        BOTH: [shows(f, " and ".join(asked)) for f, asked in pairs],
        ANY: [any(shows(f, caption) for caption in asked) for f, asked in pairs],
        FORMED: [well_formed(f) for f in found],
    }
