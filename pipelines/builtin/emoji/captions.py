"""What a picture of `emoji` is called: short names, the Unicode consortium's names and keywords, styles."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipelines.builtin.captions import noisy_words
from pipelines.builtin.emoji.names import NAMES, STYLES, WITHOUT_ARTICLE, with_article

CAPTIONS_FILE: Final = "captions.json"
_UNCONDITIONAL: Final = 0.1
_NOISY: Final = 0.08
_STYLED: Final = 0.5
_WORD: Final = re.compile(r"[a-z]+|[0-9]")


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing, and all that it is called.

    Attributes:
        name: The short name.
        full_name: The Unicode consortium's.
        keywords: Words that people search it by; several things may share one.
    """

    name: str
    full_name: str
    keywords: tuple[str, ...]


def read_things(data: Path, names: Sequence[str] = tuple(NAMES)) -> list[Thing]:
    """The names with what the fetched data say of them, in the order of ``names``."""
    said: Mapping[str, Mapping[str, object]] = json.loads((data / CAPTIONS_FILE).read_text())
    things = []
    for name in names:
        keywords = said[name]["keywords"]
        assert isinstance(keywords, list)
        things.append(Thing(name, str(said[name]["full_name"]), tuple(keywords)))
    return things


def words_of(things: Sequence[Thing]) -> tuple[str, ...]:
    """Each word of the captions once, in order of first appearance, as CLIP's tokenizer parts them."""
    texts = [f"a an the {' '.join(STYLES)} style", *(t.name for t in things), *(t.full_name for t in things)]
    texts += [keyword for thing in things for keyword in thing.keywords]
    return tuple(dict.fromkeys(word for text in texts for word in _WORD.findall(text.lower())))


def plain_caption(thing: Thing, rng: np.random.Generator) -> str:
    """One of the ways to name a thing: "a cat" 45 %, "cat" 20 %, the full name 20 %, a keyword added 15 %."""
    chance = rng.random()
    if chance < 0.45:
        return with_article(thing.name)
    if chance < 0.65:
        return thing.name
    if chance < 0.85:
        bare = thing.name in WITHOUT_ARTICLE or rng.random() < 0.5
        return thing.full_name if bare else with_article(thing.full_name)
    return f"{with_article(thing.name)}, {thing.keywords[int(rng.integers(len(thing.keywords)))]}"


def caption(thing: Thing, style: str, rng: np.random.Generator) -> str:
    """A caption of the thing's picture in a style; empty 10 % of the time (for guidance), with the style half of it.

    8 % of the others have a phrase or a word in them that says nothing.
    """
    if rng.random() < _UNCONDITIONAL:
        return ""
    said = plain_caption(thing, rng)
    if rng.random() < _STYLED:
        said = f"{said}, {style} style"
    return noisy_words(said, rng) if rng.random() < _NOISY else said
