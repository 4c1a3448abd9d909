"""What pictures are asked for, with which seeds: every picture of a table has a seed of its own.

Captions come in two splits that share none. What is chosen by trying (a guidance, a sharpness) is chosen on TUNE; what
is reported is measured on REPORT, on other captions and other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, permutations
from typing import Final

import numpy as np

from evaluation.formulas import Formula
from pipelines.builtin.captions import Phrase
from pipelines.builtin.scenes import COLOURS, SHAPES

_SPLIT_SEEDS: Final = 1_000_000_000
_STREAM_SEEDS: Final = 1_000_000


class Split(StrEnum):
    """For which use captions and seeds are drawn."""

    TUNE = "tune"
    REPORT = "report"

    @property
    def number(self) -> int:
        """Its place, from which its seeds are counted."""
        return list(Split).index(self)


@dataclass(frozen=True, slots=True)
class Asked:
    """One picture.

    Attributes:
        captions: What it is composed of.
        seed: Its own.
        formula: What it shall satisfy, where that is more than all captions.
    """

    captions: tuple[str, ...]
    seed: int
    formula: Formula | None = None


def first_seed(split: Split, stream: int) -> int:
    """Where a stream of a split begins: room for a million pictures before the next."""
    return (split.number + 1) * _SPLIT_SEEDS + stream * _STREAM_SEEDS


def different_things(count: int, things: int, split: Split) -> list[tuple[str, ...]]:
    """Tuples of captions of which no two share a colour or a shape, in random order.

    All such sets, 180 pairs or 480 triples, are shuffled once and dealt: the first third to TUNE, the others to REPORT.

    Args:
        count: How many; the same split's first ones are the same whatever the count.
        things: Captions in each, 1 to 4.
        split: Whose.
    """
    rng = np.random.default_rng(things)
    sets = [
        tuple(str(Phrase(str(c), s)) for c, s in zip(colours, shapes, strict=True))
        for shapes in combinations(SHAPES, things)
        for hues in combinations(COLOURS, things)
        for colours in permutations(hues)
    ]
    dealt = [sets[i] for i in rng.permutation(len(sets))]
    ordered = [tuple(captions[i] for i in rng.permutation(things)) for captions in dealt]
    third = len(ordered) // 3
    mine = ordered[:third] if split is Split.TUNE else ordered[third:]
    if count > len(mine):
        raise ValueError(f"the split {split} has {len(mine)} sets of {things} captions, {count} were wanted")
    return mine[:count]


def pictures(captions: Sequence[tuple[str, ...]], each: int, split: Split, stream: int) -> list[Asked]:
    """``each`` pictures of every tuple of captions, once round all of them before the second of any.

    So the first pictures of a list show all captions too, where fewer must do.

    Args:
        captions: What to ask for.
        each: Pictures of each.
        split: Whose seeds.
        stream: Which million of them: pictures of one stream are paired across ways, those of two are independent.
    """
    rounds = [named for _ in range(each) for named in captions]
    return [Asked(named, first_seed(split, stream) + i) for i, named in enumerate(rounds)]
