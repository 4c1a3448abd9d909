"""Formulas over captions on `shapes`: how often is the formula true of the picture?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from evaluation.asked import Asked, Split, different_things, first_seed
from evaluation.findings import Cell, Gallery, Section, Table
from evaluation.formulas import Atom, Cardinality, Conjunction, Disjunction, Formula, Negation, atoms
from evaluation.judges.oracle import FORMED, satisfies
from evaluation.pictures import CHUNK, Judged, blocks_of, judged, measure, part, shown_of
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results
from evaluation.ways import Composed, joint, over
from pipelines.builtin.captions import Phrase, full_names
from pipelines.builtin.oracle import Found, well_formed
from pipelines.builtin.scenes import COLOURS, SHAPES
from pipelines.composition import DECISIVE, And, Expression, Not, Or, Product, Prompt, Xor

PICTURES: Final = 96
_QUICK_PICTURES: Final = 1
_QUICK_ROWS: Final = 160
_FIRST_STREAM: Final = 30
_LOGIC: Final = "logic"
_FEW_LEAVES_ROWS: Final = 125
_HOLDS: Final = "formula true"


@dataclass(frozen=True)
class Kind:
    """A kind of formula.

    Attributes:
        name: What the report calls it.
        make: (split, count) → formulas of this kind, the same ones at every call.
        ways: How its pictures are drawn; the last ones are logic, the others what a user without it would write.
    """

    name: str
    make: Callable[[Split, int], list[Formula]]
    ways: Sequence[Composed]


def _exactly_one(things: int) -> Callable[[Split, int], list[Formula]]:
    def make(split: Split, count: int) -> list[Formula]:
        sets = different_things(min(count, 60), things, split)
        return [Cardinality(tuple(map(Atom, sets[i % len(sets)])), 1, 1) for i in range(count)]

    return make


def _without(split: Split, count: int) -> list[Formula]:
    """A circle AND NOT a red shape: every shape with every colour, and fully named things without another shape."""
    broad: list[Formula] = [
        Conjunction((Atom(str(Phrase(None, shape))), Negation(Atom(str(Phrase(colour, None))))))
        for shape, colour in product(SHAPES, COLOURS)
    ]
    named: list[Formula] = [
        Conjunction((Atom(name), Negation(Atom(f"a {shape}"))))
        for name in full_names()
        for shape in SHAPES
        if not name.endswith(shape)
    ]
    return _dealt(split, [*broad, *named], count, seed=1)


def _overlapping(split: Split, count: int) -> list[Formula]:
    """A circle XOR a red shape, and the like: both are often true by chance, of one thing or of two."""
    formulas: list[Formula] = [
        Cardinality((Atom(str(Phrase(None, shape))), Atom(str(Phrase(colour, None)))), 1, 1)
        for shape, colour in product(SHAPES, COLOURS)
    ]
    return _dealt(split, formulas, count, seed=3)


def _attributes(split: Split, count: int) -> list[Formula]:
    """(a circle OR a red shape) AND …: three clauses over six of the ten attributes, which fewer things can satisfy."""
    captions = [*(str(Phrase(None, s)) for s in SHAPES), *(str(Phrase(c, None)) for c in COLOURS)]
    return _three_clauses(np.random.default_rng((4, split.number)), captions, count)


def _clauses(split: Split, count: int) -> list[Formula]:
    """(a OR b) AND (c OR d) AND (e OR f) over six different captions, so over as many as three things."""
    return _three_clauses(np.random.default_rng((2, split.number)), full_names(), count)


def _three_clauses(rng: np.random.Generator, captions: Sequence[str], count: int) -> list[Formula]:
    found: list[Formula] = []
    for _ in range(count):
        picked = [Atom(captions[i]) for i in rng.permutation(len(captions))[:6]]
        found.append(Conjunction(tuple(Disjunction((picked[i], picked[i + 1])) for i in (0, 2, 4))))
    return found


def _dealt(split: Split, formulas: Sequence[Formula], count: int, seed: int) -> list[Formula]:
    """A third of the formulas to TUNE, the others to REPORT, repeated as often as needed."""
    order = np.random.default_rng(seed).permutation(len(formulas))
    third = len(formulas) // 3
    mine = order[:third] if split is Split.TUNE else order[third:]
    return [formulas[mine[i % len(mine)]] for i in range(count)]


def _wanted(asked: Asked) -> tuple[Prompt, ...]:
    """Leaves of the positive atoms, with the negated ones as their negative prompt."""
    formula = asked.formula
    terms = (
        formula.terms if isinstance(formula, Conjunction | Disjunction | Cardinality) else (formula,) if formula else ()
    )
    away = " and ".join(a for t in terms if isinstance(t, Negation) for a in atoms(t))
    positive = [a for t in terms if not isinstance(t, Negation) for a in atoms(t)]
    return tuple(Prompt(caption, "shapes", negative=away or None) for caption in positive)


def _ignoring(asked: Asked) -> Expression:
    """The positive part alone."""
    (leaf,) = _wanted(asked)
    return Prompt(leaf.text, leaf.model)


def _negative(asked: Asked) -> Expression:
    """The negative part as a negative prompt."""
    (leaf,) = _wanted(asked)
    return leaf


def _first_of_each(asked: Asked) -> Expression:
    """One joint prompt of a literal of each clause, picked by the picture's own coin: a user's rewriting by hand."""
    clauses = asked.formula.terms if isinstance(asked.formula, Conjunction) else ()
    rng = np.random.default_rng(asked.seed)
    picked = [rng.choice(atoms(clause)) for clause in clauses]
    return Prompt(" and ".join(map(str, picked)), "shapes")


def _node(formula: Formula | None, temperature: float = 1.0) -> Expression:
    """The formula as an expression, operator for operator; ``temperature`` is that of every OR."""
    match formula:
        case Atom(caption):
            return Prompt(caption, "shapes")
        case Negation(term):
            return Not(_node(term, temperature))
        case Conjunction(terms):
            return And(tuple(_node(term, temperature) for term in terms))
        case Disjunction(terms):
            return Or(tuple(_node(term, temperature) for term in terms), temperature)
        case Cardinality(terms, least=1, most=1):
            return Xor(tuple(_node(term, temperature) for term in terms))
    raise ValueError(f"no operator for {formula}")


def _logic(asked: Asked) -> Expression:
    return _node(asked.formula)


def _decisive(asked: Asked) -> Expression:
    """With ORs that choose early."""
    return _node(asked.formula, DECISIVE)


def _by_logic(leaves: int) -> Composed:
    return Composed(_LOGIC, _logic, rows_each=25 * (leaves + 1))


def _flat(leaves: int) -> list[Composed]:
    rows = 25 * (leaves + 1)
    return [Composed("flat OR", over(Or), rows_each=rows), Composed("flat product", over(Product), rows_each=rows)]


def _xor_ways(leaves: int) -> list[Composed]:
    return [Composed("joint prompt", joint, rows_each=50), *_flat(leaves), _by_logic(leaves)]


_CNF_WAYS: Final = [
    Composed("one literal of each, joint prompt", _first_of_each, rows_each=50),
    *_flat(6),
    _by_logic(6),
    Composed("decisive ORs", _decisive, rows_each=25 * 7),
]
KINDS: Final[Sequence[Kind]] = [
    Kind(
        "NOT",
        _without,
        [
            Composed("the positive part alone", _ignoring, rows_each=50),
            Composed("negative prompt", _negative, rows_each=50),
            _by_logic(2),
        ],
    ),
    Kind("XOR of 2", _exactly_one(2), _xor_ways(2)),
    Kind("one of 4", _exactly_one(4), _xor_ways(4)),
    Kind("XOR of overlapping", _overlapping, _xor_ways(2)),
    Kind("CNF of attributes", _attributes, _CNF_WAYS),
    Kind("CNF of named things", _clauses, _CNF_WAYS),
]


def _judge(found: Sequence[list[Found]], asked: Sequence[Asked]) -> dict[str, list[bool]]:
    held = [satisfies(f, p.formula) for f, p in zip(found, asked, strict=True) if p.formula is not None]
    return {_HOLDS: held, FORMED: [well_formed(f) for f in found]}


def _candidates(way: Composed, scope: Scope) -> tuple[int, ...]:
    """For each chunk of pictures: the ways of logic over few leaves draw several for the first."""
    most = 4 if way.name == _LOGIC and way.rows_each <= _FEW_LEAVES_ROWS else 1
    return (min(2, most),) if scope.quick else (most, *(1,) * (PICTURES // CHUNK - 1))


class Logic:
    """The suite."""

    name = "logic"
    needs: tuple[str, ...] = ()

    def blocks(self, scope: Scope) -> list[Block]:
        """As :meth:`evaluation.suite.Suite.blocks`."""
        return [
            block
            for kind in KINDS
            for way in kind.ways
            for block in blocks_of(
                self.name, f"{kind.name}: {way.name}", way, self.asked(kind, scope), _candidates(way, scope)
            )
            if not scope.quick or block.work <= _QUICK_PICTURES * _QUICK_ROWS
        ]

    def asked(self, kind: Kind, scope: Scope) -> list[Asked]:
        """The pictures of a kind, each with a formula; every way has the same."""
        first = first_seed(scope.split, _FIRST_STREAM + list(KINDS).index(kind))
        made = kind.make(scope.split, PICTURES)
        asked = [Asked(atoms(formula), first + i, formula) for i, formula in enumerate(made)]
        return asked[:_QUICK_PICTURES] if scope.quick else asked

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """As :meth:`evaluation.suite.Suite.measure`."""
        kind, _, cell = block.cell.partition(": ")
        chosen = next(k for k in KINDS if k.name == kind)
        way = next(w for w in chosen.ways if w.name == cell)
        drawn, asked = part(block, way, self.asked(chosen, scope), _candidates(way, scope))
        return measure(drawn, asked, bench.catalog, _judge, show=block.index == 0)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        parts: list[Table | Gallery] = []
        for kind in KINDS:
            found = judged(results, [way.name for way in kind.ways], f"{kind.name}: ")
            if not found:
                continue
            asked = self.asked(kind, scope)
            parts.append(_table(kind, found, asked[0]))
            captions = [str(p.formula) for p in asked[:8]]
            parts.append(Gallery(f"{kind.name}: the same seeds", shown_of(found), captions))
        text = (
            "Each picture is asked for with a formula over captions; the oracle reads it and says whether it is true."
        )
        return Section(self.name, "Logic", text, parts)


def _table(kind: Kind, found: dict[str, Judged], example: Asked) -> Table:
    rows: dict[str, list[Cell]] = {
        name: [len(j.seeds), j.rate(_HOLDS), j.rate(FORMED), j.settings, round(j.rows)] for name, j in found.items()
    }
    columns = ["pictures", _HOLDS, FORMED, "guidance", "rows a picture"]
    return Table(kind.name, columns, rows, f"For example {example.formula}.", best=[_HOLDS])


SUITE: Final = Logic()
