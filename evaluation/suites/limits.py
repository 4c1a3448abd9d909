"""What keeps soft AND from showing both things: the steps, the mixing of its samples, the choice, or the network?

Each line takes one of them away. With more steps the integration is finer; with Langevin steps at every level where
things are decided the samples come closer to what the composed score stands for; with a choice by the oracle itself no
choice could be better; the joint prompt asks the same network without composing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from evaluation.asked import Asked, different_things, pictures
from evaluation.findings import Cell, Section, Table
from evaluation.judges.oracle import BOTH, FORMED, compositions, read
from evaluation.pictures import CHUNK, blocks_of, judged, measure, part, to_pixels
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results
from evaluation.ways import Composed, Drawn, Way, joint, meter, over, settings_of
from pipelines.builtin.oracle import Found
from pipelines.catalog import Catalog
from pipelines.composition import And
from pipelines.draws import Draw, NoiseSource
from pipelines.networks import evaluate
from pipelines.sampler import finish, prepare, step

_PAIRS: Final = 60
_STREAM: Final = 7
_CANDIDATES: Final = 4
_CHOSEN: Final = f"best of {_CANDIDATES}"
_QUICK_PICTURES: Final = 4


@dataclass(frozen=True)
class Corrected:
    """Soft AND with Langevin steps z ← z + η s(z) + √(2η) ξ, η = r σ², before every step from a level to another.

    Attributes:
        name: The name of its results.
        times: Langevin steps at each level.
        share: r.
        above: The lowest σ at which they are taken.
        below: The highest.
    """

    name: str
    times: int
    share: float = 0.3
    above: float = 1.0
    below: float = 5.0

    @property
    def expected_rows(self) -> int:
        """As in :class:`~evaluation.ways.Way`."""
        return 3 * (25 + 8 * self.times)

    def draw(self, asked: Sequence[Asked], catalog: Catalog) -> dict[str, Drawn]:
        """As :meth:`~evaluation.ways.Way.draw`; all pictures have one course."""
        metered, count = meter(catalog)
        plans = [_steps(25).plan(picture, metered, catalog) for picture in asked]
        sources = [NoiseSource(plan.params, plan.shape) for plan in plans]
        states = [prepare(plan, metered, s.draw()) for plan, s in zip(plans, sources, strict=True)]
        rng = torch.Generator().manual_seed(asked[0].seed)
        while not states[0].done:
            still = [Draw.nothing(state.z, len(state.effective)) for state in states]
            for _ in range(self.times if self.above <= states[0].sigma <= self.below else 0):
                looked = step(states, evaluate(states, metered), still)
                states = [
                    replace(s, z=self._moved(s.z, seen.followed, s.sigma, rng))
                    for s, seen in zip(states, looked, strict=True)
                ]
            draws = [s.draw() for s in sources] if states[0].draws else still
            states = step(states, evaluate(states, metered), draws)
        drawn = torch.cat([finish(state).z for state in states])
        return {self.name: Drawn(drawn, count() / len(asked), settings_of(plans[0].params))}

    def _moved(self, z: Tensor, denoised: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
        """One Langevin step: the score is (x̂0 − z)/σ²."""
        noise = torch.randn(z.shape, generator=rng).to(z)
        return z + self.share * (denoised - z) + math.sqrt(2 * self.share) * sigma * noise


def _steps(count: int) -> Composed:
    return Composed(f"{count} steps", over(And), {"steps": count}, rows_each=3 * count)


_WAYS: Final[dict[str, Way]] = {
    way.name: way
    for way in (
        _steps(25),
        _steps(50),
        _steps(100),
        Corrected("3 Langevin steps a level", 3),
        Composed("joint prompt", joint, rows_each=50),
    )
}
_CHOICE: Final = Composed(_CHOSEN, over(And), best_of=(_CANDIDATES,))


def _judge(found: Sequence[list[Found]], asked: Sequence[Asked]) -> dict[str, list[bool]]:
    return compositions(found, [picture.captions for picture in asked])


class Limits:
    """The suite."""

    name = "limits"
    needs: tuple[str, ...] = ()

    def blocks(self, scope: Scope) -> list[Block]:
        """As :meth:`evaluation.suite.Suite.blocks`; the quick version leaves out what costs much."""
        asked = self.asked(scope)
        ways = [*_WAYS.values(), _CHOICE]
        blocks = [b for way in ways for b in blocks_of(self.name, way.name, way, asked, self._chunks(way, scope))]
        return [block for block in blocks if not scope.quick or block.cell in {"25 steps", _CHOSEN}]

    def asked(self, scope: Scope) -> list[Asked]:
        """The pictures, the same ones for every line."""
        found = pictures(different_things(_PAIRS, 2, scope.split), 4, scope.split, _STREAM)
        return found[: _QUICK_PICTURES if scope.quick else (4 if scope.full else 2) * CHUNK]

    def _chunks(self, way: Way, scope: Scope) -> tuple[int, ...]:
        return (_CANDIDATES if way is _CHOICE else 1,) * (1 if scope.quick else 4 if scope.full else 2)

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """As :meth:`evaluation.suite.Suite.measure`."""
        chosen = block.cell == _CHOSEN
        way = _CHOICE if chosen else _WAYS[block.cell]
        drawn, asked = part(block, way, self.asked(scope), self._chunks(way, scope))
        return _candidates(asked, bench.catalog) if chosen else measure(drawn, asked, bench.catalog, _judge, show=False)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        rows: dict[str, list[Cell]] = {
            name: [len(j.seeds), j.rate(BOTH), j.rate(FORMED), round(j.rows)]
            for name, j in judged(results, [*_WAYS, _CHOSEN]).items()
        }
        note = "The same seeds and captions in every line; all but the joint prompt draw with soft AND's defaults."
        table = Table("Two captions", ["pictures", BOTH, FORMED, "rows a picture"], rows, note, best=[BOTH])
        return Section(self.name, "What limits soft AND?", (__doc__ or "").partition("\n\n")[2], [table])


def _candidates(asked: Sequence[Asked], catalog: Catalog) -> Outcome:
    """The best of several by our own choice, and by the oracle's: one that is right, if there is one."""
    metered, count = meter(catalog)
    states = _CHOICE.states(asked, metered, catalog)
    rows, settings = count() / len(asked), settings_of(states[0].plan.params)
    found = read(to_pixels(catalog.get("shapes").decode(torch.cat([state.z for state in states]))))
    verdicts = _judge(found, [picture for picture in asked for _ in range(_CANDIDATES)])
    each = {name: np.reshape(values, (-1, _CANDIDATES)) for name, values in verdicts.items()}
    picked = {
        _CHOSEN: np.array([int(finish(state).candidate[0]) for state in states]),
        f"{_CHOSEN}, by the oracle": each[BOTH].argmax(1),
    }
    lines = {
        line: {
            "rows": rows,
            "settings": settings,
            "verdicts": {name: values[np.arange(len(asked)), index].tolist() for name, values in each.items()},
        }
        for line, index in picked.items()
    }
    return Outcome({"seeds": [picture.seed for picture in asked], "lines": lines}, {})


SUITE: Final = Limits()
