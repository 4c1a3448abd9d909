"""Pairs and triples of captions on `shapes`: how often is everything there that was asked for?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluation import reference
from evaluation.asked import Asked, Split, different_things, first_seed, pictures
from evaluation.findings import Cell, Chart, Gallery, Point, Section, Table, point
from evaluation.judges.density import log_ratios
from evaluation.judges.oracle import ANY, BOTH, FORMED, compositions
from evaluation.pictures import CHUNK, Also, Judged, blocks_of, judged, measure, part, shown_of
from evaluation.statistics import bootstrap_mean, root
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results
from evaluation.ways import Composed, Original, Way, joint, over
from pipelines.builtin.oracle import Found
from pipelines.card import DEFAULT_GUIDANCE_START
from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Method, Product
from pipelines.params import Select

_PAIRS: Final = 96
# The split for tuning has fewer sets of captions.
_TUNE_PAIRS: Final = 60
# Pictures of each pair, in a full run.
_ROUNDS: Final = 4
_QUICK_PICTURES: Final = 4
_QUICK_ROWS: Final = 160
_GAP_STREAM: Final = 3
_GAP_LEVELS: Final = 96
_QUICK_GAP_LEVELS: Final = 4
_LEAST_GAPS: Final = 4
_STREAMS: Final = {2: 1, 3: 2}


@dataclass(frozen=True)
class Line:
    """A way with its share of the pictures.

    Attributes:
        way: How.
        candidates: For each chunk of 48 pictures how many candidates are drawn, at most.
        more: The same for the further chunks of a full run.
        things: Captions in a set.
        gap: Whether the true gap of the two log-densities is measured.
    """

    way: Way
    candidates: tuple[int, ...]
    things: int = 2
    gap: bool = False
    more: tuple[int, ...] = ()

    @property
    def cell(self) -> str:
        """Its name in the store."""
        return self.way.name if self.things == 2 else f"{_PREFIX}{self.way.name}"


_PREFIX: Final = "triples: "


def _balanced(terms: tuple[Expression, ...]) -> Expression:
    return And(terms, method=Method.BALANCED)


_OPERATORS: Final[dict[str, Callable[[Asked], Expression]]] = {
    "joint prompt": joint,
    "average": over(Average),
    "product": over(Product),
    "balanced AND": over(_balanced),
    "soft AND": over(And),
}


def _composed(operator: str, things: int = 2, suffix: str = "", **params: object) -> Composed:
    rows = 25 * (2 if operator == "joint prompt" else things + 1)
    return Composed(f"{operator}{suffix}", _OPERATORS[operator], params, rows_each=rows)


def _lines() -> list[Line]:
    found = [
        Line(_composed("joint prompt"), (4, 1, 1, 1), more=(1,) * 4),
        Line(_composed("average"), (1, 1, 1, 1), more=(1,) * 4),
        Line(_composed("product"), (4, 1, 1, 1), more=(1,) * 4),
        Line(_composed("balanced AND"), (4, 1, 1, 1), gap=True, more=(1,) * 4),
        Line(_composed("soft AND"), (8, 4, 4, 4), more=(4,) * 4),
        Line(_composed("soft AND", suffix=" (chosen by density)", select=Select.DENSITY), (4,), more=(4,) * 3),
        Line(_composed("soft AND", suffix=", guided from the start", guidance_start=0.0), (1, 1), more=(1,) * 6),
        Line(_composed("product", suffix=", guided later", guidance_start=DEFAULT_GUIDANCE_START), (1, 1)),
    ]
    found += [
        Line(_composed(operator, suffix=f", {k} particles", particles=k), (1,))
        for operator, k in (("product", 8), ("soft AND", 4), ("soft AND", 8))
    ]
    found += [
        Line(Original(f"authors' AND, {steps} steps", reference.Operator.AND, steps), (1, 1), gap=True, more=(1, 1))
        for steps in (25, 100, 200, 1000)
    ]
    found.append(Line(Original("authors' average, 100 steps", reference.Operator.AVERAGE, 100), (1,)))
    found += [Line(_composed(o, 3), (1, 1), things=3) for o in ("joint prompt", "product", "balanced AND")]
    found.append(Line(_composed("soft AND", 3), (4, 1), things=3))
    return found


LINES: Final[dict[str, Line]] = {line.cell: line for line in _lines()}


def _judge(found: Sequence[list[Found]], asked: Sequence[Asked]) -> dict[str, list[bool]]:
    return compositions(found, [picture.captions for picture in asked])


def _candidates(line: Line, scope: Scope) -> tuple[int, ...]:
    if scope.quick:
        return (min(2, line.candidates[0]),)
    return (*line.candidates, *line.more) if scope.full else line.candidates


class Prompts:
    """The suite."""

    name = "prompts"
    needs: tuple[str, ...] = ()

    def blocks(self, scope: Scope) -> list[Block]:
        """As :meth:`evaluation.suite.Suite.blocks`; the quick version leaves out what costs much and the triples."""
        return [
            block
            for line in LINES.values()
            for candidates in [_candidates(line, scope)]
            for block in blocks_of(self.name, line.cell, line.way, self.asked(line, scope), candidates)
            if not scope.quick or (line.things == 2 and block.work <= _QUICK_PICTURES * _QUICK_ROWS)
        ]

    def asked(self, line: Line, scope: Scope) -> list[Asked]:
        """The pictures of a line; lines with fewer have the first ones of the others."""
        count = _TUNE_PAIRS if scope.split is Split.TUNE else _PAIRS
        sets = different_things(count, line.things, scope.split)
        asked = pictures(sets, _ROUNDS, scope.split, _STREAMS[line.things])
        return asked[: _QUICK_PICTURES if scope.quick else CHUNK * len(_candidates(line, scope))]

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """As :meth:`evaluation.suite.Suite.measure`."""
        line = LINES[block.cell]
        way, asked = part(block, line.way, self.asked(line, scope), _candidates(line, scope))
        also = _gaps(bench.catalog, scope) if line.gap and block.index < CHUNK else None
        return measure(way, asked, bench.catalog, _judge, show=block.index == 0, also=also)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        parts: list[Table | Chart | Gallery] = []
        for things, word in ((2, "Two"), (3, "Three")):
            lines = [line for line in LINES.values() if line.things == things]
            found = judged(results, [line.way.name for line in lines], "" if things == 2 else _PREFIX)
            if not found:
                continue
            parts.append(_table(f"{word} captions that differ in colour and shape", found))
            if (gaps := _gap_table(found)) is not None:
                parts.append(gaps)
            parts.append(_cost_chart(f"{word} things, by cost", found))
            captions = [", ".join(p.captions) for p in self.asked(lines[0], scope)[:8]]
            parts.append(Gallery(f"{word} things: the same seeds by every way", shown_of(found), captions))
        text = (
            "A picture is asked to hold two (or three) things, each named by a caption of its own. The oracle reads it:"
            " are all things there, is at least one, is the picture a scene of one to three well-formed shapes?"
        )
        return Section(self.name, "Prompts: is everything there?", text, parts)


def _gaps(catalog: Catalog, scope: Scope) -> Also:
    """Measures log q_1 − log q_2 of pictures of two captions, twice each, on noise of its own."""

    def measured(z: Tensor, asked: Sequence[Asked]) -> dict[str, list[list[float]]]:
        captions = [p.captions[0] for p in asked], [p.captions[1] for p in asked]
        seeds = [p.seed + first_seed(scope.split, _GAP_STREAM) for p in asked]
        levels = _QUICK_GAP_LEVELS if scope.quick else _GAP_LEVELS
        return {"gaps": log_ratios(catalog.get("shapes"), z, captions, seeds, levels=levels).tolist()}

    return measured


def _gap_table(found: dict[str, Judged]) -> Table | None:
    rows: dict[str, list[Cell]] = {}
    for name, j in found.items():
        gaps = np.array([pair for entry in j.entries for pair in entry.get("gaps", [])])
        if len(gaps):
            there = np.array(j.verdicts[BOTH][: len(gaps)])
            middle = float(np.median(np.abs(gaps.mean(1))))
            rows[name] = [len(gaps), _rms(gaps), middle, *(_rms(gaps[there == held]) for held in (True, False))]
    columns = ["pictures", "true gap, rms nats", "median |gap|", "rms where all is there", "rms where not"]
    note = (
        "log q_1 − log q_2 of the finished pictures by the I-MMSE relation on fresh noise, two independent estimates a"
        " picture, so that the rms holds none of the measurement's own noise; the median holds some."
    )
    return Table("Balanced AND: how equal the two densities are", columns, rows, note) if rows else None


def _rms(gaps: NDArray[np.float64]) -> Cell:
    """The root of E g g'; None of too few pictures."""
    if len(gaps) < _LEAST_GAPS:
        return None
    squares = bootstrap_mean(gaps[:, 0] * gaps[:, 1])
    return root(replace(squares, value=max(0.0, squares.value), low=max(0.0, squares.low), high=max(0.0, squares.high)))


def _table(title: str, found: dict[str, Judged]) -> Table:
    base = next((name for name in found if name.startswith("soft AND")), next(iter(found)))
    rows: dict[str, list[Cell]] = {
        name: [
            len(j.seeds),
            j.rate(BOTH),
            None if name == base else j.against(found[base], BOTH),
            j.rate(ANY),
            j.rate(FORMED),
            j.settings,
            round(j.rows),
        ]
        for name, j in found.items()
    }
    columns = ["pictures", BOTH, "less the first soft AND, points", ANY, FORMED, "guidance", "rows a picture"]
    note = "25 steps unless a line says otherwise. Differences are of the same seeds and captions, picture by picture."
    return Table(title, columns, rows, note, best=[BOTH, FORMED])


def _cost_chart(title: str, found: dict[str, Judged]) -> Chart:
    curves: dict[str, list[Point]] = {}
    for name, j in found.items():
        # "…, best of 4", "…, 8 particles" and "…, 100 steps" are points of one curve.
        head, _, tail = name.rpartition(", ")
        family = head if tail.startswith("best of") or tail.endswith(("particles", "steps")) else name
        family += " with particles" if tail.endswith("particles") else ""
        curves.setdefault(family, []).append(point(j.rows, j.rate(BOTH)))
    return Chart(title, "network rows a picture", BOTH, curves, log_x=True, percent=True)


SUITE: Final = Prompts()
