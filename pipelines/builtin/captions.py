"""What captions say of scenes, and the draw of a scene that a caption is true of.

A caption names what a scene *contains*, never all that it contains: "a red circle" is true of every scene with a red
circle in it, whatever else is there. Training pairs keep that meaning: a scene is drawn given its caption, from those
that it is true of. Were the caption drawn from the scene instead, scenes with few things would be favoured by
1/(number of captions they have), the densities of two captions would hardly overlap, and AND would have little to find.

Nor does a caption say how many things there are: their number is drawn as it is without a caption, and then the scene.
Uniformly from all scenes that it is true of, "a red circle" would mostly mean three things, which are likelier to have
a red circle among them; and guidance, which enlarges what a caption changes, would then crowd the picture.
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
_PREFIXES: Final = ("a photo of", "a picture of", "an image of", "a drawing of", "a painting with", "a picture with")


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

    @cached_property
    def _counts(self) -> NDArray[np.intp]:
        """How many things each scene has."""
        return np.array([len(scene.things) for scene in self.scenes])

    def draw(self, rng: np.random.Generator) -> tuple[Caption, int]:
        """A caption of one random scene, then the index of a scene that it is true of.

        The number of things is drawn as the scenes have it, then the scene, uniformly.
        """
        caption = draw_caption(self.scenes[int(rng.integers(len(self.scenes)))], rng)
        said = np.logical_and.reduce([self._said_by[phrase] for phrase in caption.phrases])
        while True:
            # "a circle and a red shape" needs two things; the scene that it was taken from has them, so this ends.
            count = self._counts[int(rng.integers(len(self.scenes)))]
            candidates = np.flatnonzero(said & (self._counts == count))
            if len(candidates) and caption.fits(self.scenes[index := int(rng.choice(candidates))]):
                return caption, index


def full_names() -> list[str]:
    """The 24 captions of one fully named thing, colours within shapes."""
    return [str(Phrase(colour, shape)) for shape in SHAPES for colour in COLOURS]


def noisy_words(text: str, rng: np.random.Generator) -> str:
    """The caption behind a phrase that says nothing, or with a meaningless word in it: what users' prompts have."""
    if rng.random() < 0.5:
        return f"{_PREFIXES[int(rng.integers(len(_PREFIXES)))]} {text}"
    words = text.split()
    letters = rng.integers(ord("a"), ord("z") + 1, size=int(rng.integers(2, 7)))
    words.insert(int(rng.integers(len(words) + 1)), "".join(chr(c) for c in letters))
    return " ".join(words)
