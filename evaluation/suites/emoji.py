"""What `emoji` draws: is the named thing recognised, and how much of each thing is in a picture of two?

The judge is a classifier of all names. A picture of two things may be a blend that it has never seen, so pairs are
told by its log-probabilities of both names and by the lifts, beside the joint prompt's, not by a share alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from evaluation.asked import Asked, pictures
from evaluation.findings import Cell, Gallery, Section, Table
from evaluation.judges.emoji import EmojiJudge
from evaluation.pictures import SHOWN, to_pixels
from evaluation.statistics import Rate, bootstrap_mean
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results, cell_of
from evaluation.ways import Composed, meter
from pipelines.builtin.emoji.captions import read_things
from pipelines.builtin.emoji.names import NAMES, with_article
from pipelines.builtin.emoji.pictures import DATA_FOLDER
from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Method, Or, Product, Prompt
from pipelines.sampler import finish

_MODEL: Final = "emoji"
_NAMES: Final = 100
_EACH: Final = 8
_PAIRS: Final = 50
_PAIRS_EACH: Final = 2
_BLOCK: Final = 50
_QUICK: Final = 2
_SINGLE, _TWO, _EITHER = "Named thing recognised", "Two things", "One of two things"
_TOP: Final = (1, 5)


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        table: Whose.
        way: How its pictures are drawn; an :class:`Asked` names things, by their short names.
        pictures: How many.
    """

    table: str
    way: Composed
    pictures: int

    @property
    def cell(self) -> str:
        """Its name in the store."""
        return f"{self.table}: {self.way.name}"


def _plain(asked: Asked) -> Expression:
    return Prompt(with_article(asked.captions[0]), _MODEL)


def _full_name(asked: Asked) -> Expression:
    (thing,) = read_things(DATA_FOLDER, asked.captions)
    return Prompt(thing.full_name, _MODEL)


def _both(operator: Callable[[tuple[Expression, ...]], Expression]) -> Callable[[Asked], Expression]:
    def compose(asked: Asked) -> Expression:
        return operator(tuple(Prompt(with_article(name), _MODEL) for name in asked.captions))

    return compose


def _joint(asked: Asked) -> Expression:
    return Prompt(" and ".join(map(with_article, asked.captions)), _MODEL)


_OPERATORS: Final[Mapping[str, Callable[[Asked], Expression]]] = {
    "joint prompt": _joint,
    "average": _both(Average),
    "product": _both(Product),
    "balanced AND": _both(lambda terms: And(terms, method=Method.BALANCED)),
    "soft AND": _both(And),
}
LINES: Final[Mapping[str, Line]] = {
    line.cell: line
    for line in (
        Line(_SINGLE, Composed("plain prompts", _plain, rows_each=50), _NAMES * _EACH),
        Line(_SINGLE, Composed("full names", _full_name, rows_each=50), _NAMES * _EACH),
        *(Line(_TWO, Composed(name, compose), _PAIRS * _PAIRS_EACH) for name, compose in _OPERATORS.items()),
        Line(_EITHER, Composed("OR", _both(Or)), _PAIRS * _PAIRS_EACH),
    )
}


class Emoji:
    """The suite."""

    name = "emoji"
    needs = ("emoji_judge",)

    def blocks(self, scope: Scope) -> list[Block]:
        """As :meth:`evaluation.suite.Suite.blocks`."""
        return [
            Block(self.name, line.cell, first, line.way.rows_each * min(_BLOCK, count - first))
            for line in LINES.values()
            for count in [_QUICK if scope.quick else line.pictures]
            for first in range(0, count, _BLOCK)
        ]

    def asked(self, line: Line, scope: Scope) -> list[Asked]:
        """The pictures of a line; the lines of a table share seeds."""
        rng = np.random.default_rng((scope.split.number, 70))
        names = [str(name) for name in rng.permutation(list(NAMES))]
        if line.table == _SINGLE:
            return pictures([(name,) for name in names[:_NAMES]], _EACH, scope.split, 70)
        pairs = [(names[2 * i], names[2 * i + 1]) for i in range(_PAIRS)]
        return pictures(pairs, _PAIRS_EACH, scope.split, 71)

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """As :meth:`evaluation.suite.Suite.measure`."""
        line = LINES[block.cell]
        last = _QUICK if scope.quick else block.index + _BLOCK
        return _drawn(line, self.asked(line, scope)[block.index : last], bench.catalog, bench.emoji_judge, block.index)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        found = [(line, outcomes) for line in LINES.values() if (outcomes := cell_of(results, line.cell))]
        tables = {_SINGLE: _recognised, _TWO: _shared, _EITHER: _either}
        parts: list[Table | Gallery] = []
        for name, table in tables.items():
            mine = {line.way.name: outcomes for line, outcomes in found if line.table == name}
            if mine:
                parts.append(table(name, mine))
        rows = {line.way.name: o[0].arrays["pictures"] for line, o in found if line.table != _SINGLE}
        if rows:
            asked = self.asked(next(line for line in LINES.values() if line.table == _TWO), scope)
            parts.append(Gallery("The same seeds by every way", rows, [", ".join(a.captions) for a in asked[:SHOWN]]))
        return Section(self.name, "Emoji: is the thing there?", (__doc__ or "").partition("\n\n")[2], parts)


def _drawn(line: Line, asked: Sequence[Asked], catalog: Catalog, judge: EmojiJudge, index: int) -> Outcome:
    """Draw and judge: of each picture the rank and log-probability of each name, and the lifts."""
    metered, count = meter(catalog)
    samples = [finish(state) for state in line.way.states(asked, metered, catalog)]
    images = catalog.get(_MODEL).decode(torch.cat([s.z for s in samples]))
    told = judge.log_probabilities(images)
    places = torch.tensor([[judge.names.index(name) for name in picture.captions] for picture in asked])
    logs = told.gather(1, places)
    ranks = (told.unsqueeze(1) > logs.unsqueeze(2)).sum(2) + 1
    rows = count() / len(asked)
    told_of = {
        "rows": rows,
        "log_p": logs.tolist(),
        "rank": ranks.tolist(),
        "lift": [s.lift[0].tolist() for s in samples],
    }
    shown = {"pictures": to_pixels(images[:SHOWN])} if index == 0 else {}
    return Outcome({"seeds": [picture.seed for picture in asked], "lines": {line.way.name: told_of}}, shown)


def _all(outcomes: Sequence[Outcome], what: str) -> Any:
    """One entry a picture, of all blocks of a line."""
    return np.array([v for o in outcomes for entry in o.numbers["lines"].values() for v in entry[what]], dtype=float)


def _rows(outcomes: Sequence[Outcome]) -> int:
    return round(float(np.mean([entry["rows"] for o in outcomes for entry in o.numbers["lines"].values()])))


def _recognised(title: str, found: Mapping[str, Sequence[Outcome]]) -> Table:
    rows: dict[str, list[Cell]] = {}
    for name, outcomes in found.items():
        rank = _all(outcomes, "rank")[:, 0]
        rows[name] = [len(rank), *(Rate.of(rank <= top) for top in _TOP), _rows(outcomes)]
    columns = ["pictures", *(f"among the first {top}" if top > 1 else "first" for top in _TOP), "rows a picture"]
    return Table(title, columns, rows, f"Of all {len(NAMES)} names that the judge tells apart.")


def _shared(title: str, found: Mapping[str, Sequence[Outcome]]) -> Table:
    rows: dict[str, list[Cell]] = {}
    for name, outcomes in found.items():
        logs, ranks, lifts = _all(outcomes, "log_p"), _all(outcomes, "rank"), _all(outcomes, "lift")
        both = lifts.shape[1] == logs.shape[1]
        rows[name] = [
            len(logs),
            bootstrap_mean(logs.min(1)),
            bootstrap_mean(logs.mean(1)),
            Rate.of((ranks <= _TOP[1]).all(1)),
            bootstrap_mean(lifts.min(1)) if both else None,
            _rows(outcomes),
        ]
    columns = [
        "pictures",
        "least log p",
        "mean log p",
        f"both among the first {_TOP[1]}",
        "least lift",
        "rows a picture",
    ]
    note = (
        "The judge's log-probabilities of the two names, and the lifts of the prompts as they were composed, in nats."
    )
    return Table(title, columns, rows, note)


def _either(title: str, found: Mapping[str, Sequence[Outcome]]) -> Table:
    rows: dict[str, list[Cell]] = {}
    for name, outcomes in found.items():
        first = _all(outcomes, "rank") == 1
        rows[name] = [len(first), Rate.of(first[:, 0]), Rate.of(first[:, 1]), Rate.of(first.any(1)), _rows(outcomes)]
    return Table(title, ["pictures", "the first", "the second", "one of them", "rows a picture"], rows)


SUITE: Final = Emoji()
