"""What captions say of scenes, and the draw of a scene that a caption is true of.

A caption names what a scene *contains*, never all that it contains: "a red circle" is true of every scene with a red
circle in it, whatever else is there. Training pairs keep that meaning: given its caption, a scene is drawn from the
scenes that the caption is true of, p(scene | caption) = p(scene) · 1[caption is true] / P(caption is true). Were the
caption drawn from the scene instead, scenes with few things would be favoured by 1/(number of captions they have), and
the densities of two captions would hardly overlap. So their AND has something to find, and the product rule, exact for
such densities, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.builtin.scenes import COLOURS, SHAPES, Scene, Thing

_FULL: Final = 0.7
_SHAPE_ONLY: Final = 0.15


@dataclass(frozen=True, slots=True)
class Phrase:
    """One thing as a caption names it: in full, by its shape alone, or by its colour alone."""

    colour: str | None
    shape: str | None

    def fits(self, thing: Thing) -> bool:
        """Whether the phrase is true of a thing."""
        return self.colour in (None, thing.colour) and self.shape in (None, thing.shape)

    def __str__(self) -> str:
        return " ".join(word for word in ("a", self.colour, self.shape or "shape") if word)


@dataclass(frozen=True, slots=True)
class Caption:
    """The things that a scene is said to contain, each by a phrase of its own; none: nothing is said."""

    phrases: tuple[Phrase, ...] = ()

    def fits(self, scene: Scene) -> bool:
        """Whether the phrases can be matched with as many different things of the scene."""
        orders = permutations(scene.things, len(self.phrases))
        return any(all(p.fits(t) for p, t in zip(self.phrases, things, strict=True)) for things in orders)

    def __str__(self) -> str:
        return " and ".join(map(str, self.phrases))


def draw_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A true caption of a scene: a random non-empty subset of its things, in random order.

    A thing is named in full (70 %), by its shape alone (15 %), or by its colour alone ("a red shape", 15 %).
    """
    named = rng.permutation(len(scene.things))[: int(rng.integers(1, len(scene.things) + 1))]
    phrases = []
    for i in named:
        thing, style = scene.things[int(i)], rng.random()
        colour = None if _FULL <= style < _FULL + _SHAPE_ONLY else thing.colour
        shape = thing.shape if style < _FULL + _SHAPE_ONLY else None
        phrases.append(Phrase(colour, shape))
    return Caption(tuple(phrases))


class CaptionedScenes:
    """A fixed set of scenes, from which pairs of a caption and a scene are drawn."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        """Keep the scenes, one or more."""
        self.scenes = scenes

    @cached_property
    def _said_by(self) -> dict[Phrase, NDArray[np.bool_]]:
        """By phrase: of which scenes it is true."""
        phrases = {Phrase(c, s) for c in (None, *COLOURS) for s in (None, *SHAPES)}
        return {p: np.array([any(map(p.fits, scene.things)) for scene in self.scenes]) for p in phrases}

    def draw(self, rng: np.random.Generator) -> tuple[Caption, int]:
        """A caption of one random scene, then the index of a scene drawn uniformly from all that it is true of."""
        caption = draw_caption(self.scenes[int(rng.integers(len(self.scenes)))], rng)
        each_said = np.logical_and.reduce([self._said_by[phrase] for phrase in caption.phrases])
        candidates = np.flatnonzero(each_said)
        while not caption.fits(self.scenes[index := int(rng.choice(candidates))]):
            pass  # "a circle and a red shape" needs two things; the scene that it was taken from has them
        return caption, index


def full_names() -> list[str]:
    """The 24 captions of one fully named thing, colours within shapes."""
    return [str(Phrase(colour, shape)) for shape in SHAPES for colour in COLOURS]
