"""Suites of pictures: a way draws what is asked for, a judge gives each picture its verdicts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluation.asked import Asked
from evaluation.judges.oracle import read
from evaluation.statistics import Estimate, Rate, paired_difference
from evaluation.store import Block, Outcome
from evaluation.suite import Results, cell_of
from evaluation.ways import Way, with_candidates
from pipelines.builtin.oracle import Found
from pipelines.catalog import Catalog

CHUNK: Final = 48
"""Pictures that are drawn with as many candidates each."""
# Pictures of a block: enough to fill a batch, few enough to lose little when a run is stopped.
_SIZES: Final = (48, 24, 16, 12, 8)
_BLOCK_ROWS: Final = 16_000
SHOWN: Final = 8
Also = Callable[[Tensor, Sequence[Asked]], Mapping[str, Any]]
Judge = Callable[[Sequence[list[Found]], Sequence[Asked]], Mapping[str, Sequence[bool]]]


def blocks_of(suite: str, cell: str, way: Way, asked: Sequence[Asked], candidates: Sequence[int]) -> list[Block]:
    """The blocks of one way's pictures.

    Args:
        suite: Whose.
        cell: Their name in the store.
        way: How.
        asked: The pictures; those beyond the last chunk are left out.
        candidates: For each chunk of 48 pictures how many candidates are drawn for a picture: many cost much, so not
            all pictures have as many.
    """
    found = []
    for chunk, most in enumerate(candidates):
        drawn = with_candidates(way, most)
        for first in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(asked)), _size(drawn)):
            work = drawn.expected_rows * len(asked[first : first + _size(drawn)])
            found.append(Block(suite, cell, first, work))
    return found


def part(block: Block, way: Way, asked: Sequence[Asked], candidates: Sequence[int]) -> tuple[Way, Sequence[Asked]]:
    """How a block of :func:`blocks_of` is drawn, and which pictures are in it; its index is that of its first one."""
    drawn = with_candidates(way, candidates[block.index // CHUNK])
    end = min(block.index + _size(drawn), (block.index // CHUNK + 1) * CHUNK)
    return drawn, asked[block.index : end]


def _size(way: Way) -> int:
    return next((size for size in _SIZES if size * way.expected_rows <= _BLOCK_ROWS), _SIZES[-1])


def measure(
    way: Way, asked: Sequence[Asked], catalog: Catalog, judge: Judge, *, show: bool, also: Also | None = None
) -> Outcome:
    """Draw, decode, let the judge look.

    Args:
        way: How to draw.
        asked: What.
        catalog: The builtin models.
        judge: What was found, and what was asked → named verdicts, one a picture.
        show: Whether the first pictures are kept to be shown.
        also: What else to measure on the samples: more entries of each line.
    """
    lines: dict[str, dict[str, Any]] = {}
    shown = {}
    for name, drawn in way.draw(asked, catalog).items():
        pixels = to_pixels(catalog.get("shapes").decode(drawn.z))
        verdicts = {key: [bool(v) for v in values] for key, values in judge(read(pixels), asked).items()}
        lines[name] = {"rows": drawn.rows, "settings": drawn.settings, "verdicts": verdicts}
        if also is not None:
            lines[name] |= also(drawn.z, asked)
        if show:
            shown[f"pictures: {name}"] = pixels[:SHOWN]
    return Outcome({"seeds": [picture.seed for picture in asked], "lines": lines}, shown)


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """(B, 3, height, width) in [0, 1] → (B, height, width, 3) RGB."""
    pixels: NDArray[np.uint8] = pictures.permute(0, 2, 3, 1).mul(255).round().byte().cpu().numpy()
    return pixels


class Judged:
    """All pictures of one line of a table.

    Args:
        outcomes: Of a cell; those without the line are left out.
        line: Its name.
    """

    def __init__(self, outcomes: Sequence[Outcome], line: str) -> None:
        outcomes = [o for o in outcomes if line in o.numbers["lines"]]
        self.seeds = [seed for o in outcomes for seed in o.numbers["seeds"]]
        entries = [o.numbers["lines"][line] for o in outcomes]
        self.verdicts = {name: [v for e in entries for v in e["verdicts"][name]] for name in entries[0]["verdicts"]}
        self.rows = float(np.average([e["rows"] for e in entries], weights=[len(o.numbers["seeds"]) for o in outcomes]))
        self.entries = entries
        self.settings = str(entries[0]["settings"])
        key = f"pictures: {line}"
        self.shown = next((o.arrays[key] for o in outcomes if key in o.arrays), None)

    def rate(self, verdict: str) -> Rate:
        """How often a verdict was true."""
        return Rate.of(self.verdicts[verdict])

    def against(self, other: "Judged", verdict: str) -> Estimate | None:
        """The difference of the rates on the seeds that both have drawn; None for none."""
        theirs = dict(zip(other.seeds, other.verdicts[verdict], strict=True))
        pairs = [(v, theirs[s]) for s, v in zip(self.seeds, self.verdicts[verdict], strict=True) if s in theirs]
        return paired_difference([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def judged(results: Results, cells: Sequence[str], prefix: str = "") -> dict[str, Judged]:
    """Every line of the cells that have been measured, in the order given.

    Args:
        results: Of a suite.
        cells: Names of ways.
        prefix: What stands before them in the store.
    """
    found: dict[str, Judged] = {}
    for cell in cells:
        if outcomes := cell_of(results, prefix + cell):
            lines = dict.fromkeys(line for outcome in outcomes for line in outcome.numbers["lines"])
            found |= {line: Judged(outcomes, line) for line in lines}
    return found


def shown_of(found: Mapping[str, Judged]) -> dict[str, NDArray[np.uint8]]:
    """The pictures to show, by line."""
    return {name: j.shown for name, j in found.items() if j.shown is not None}
