"""The two halves, as the paper's on CIFAR-10: does OR of `shapes-round` and `shapes-sharp` draw the union of both?

The truth is an even mixture of scenes of round shapes only and of sharp shapes only. The joint model, `shapes`, was
trained on scenes that mix both kinds, so it draws another distribution: it stands here to say so, not as a bound.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.asked import Asked, first_seed
from evaluation.findings import Cell, Gallery, Section, Table
from evaluation.judges.distances import Manifold, Vectors, frechet
from evaluation.judges.features import features, rendered
from evaluation.judges.oracle import FORMED, read
from evaluation.pictures import CHUNK, SHOWN, Judged, blocks_of, part, to_pixels
from evaluation.statistics import Estimate, Rate
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results, cell_of
from evaluation.ways import Composed, Drawn, Way
from pipelines.builtin.oracle import shapes_of, well_formed
from pipelines.builtin.scenes import ROUND, SHARP, Scene, draw_scene
from pipelines.catalog import Catalog
from pipelines.composition import Average, Expression, Or, Prompt

PICTURES: Final = 288
_QUICK_PICTURES: Final = 8
_REAL: Final = 2000
_STREAM, _REAL_STREAM = 20, 21
_RESAMPLES: Final = 100
_NORMAL: Final = 1.96
A, B = Prompt("", "shapes-round"), Prompt("", "shapes-sharp")
_UNGUIDED: Final = {"guidance_scale": 1.0, "guidance_start": 0.0}
_ROUND, _SHARP, _MIXED = "round only", "sharp only", "both kinds"


def _always(expression: Expression) -> Callable[[Asked], Expression]:
    return lambda _: expression


def _coin(asked: Asked) -> Expression:
    """A or B by a coin of the picture's own."""
    return A if np.random.default_rng(asked.seed).random() < 0.5 else B


class _Scenes:
    """Rendered scenes of the truth through the autoencoder: what a perfect sampler over its latents would give."""

    name = "real scenes through the autoencoder"
    expected_rows = 5

    def draw(self, asked: Sequence[Asked], catalog: Catalog) -> dict[str, Drawn]:
        """As :meth:`evaluation.ways.Way.draw`; the seed is the scene's."""
        pixels = torch.from_numpy(rendered([_scene(np.random.default_rng(p.seed)) for p in asked]))
        z: Tensor = catalog.get("shapes").encode(pixels.permute(0, 3, 1, 2).float() / 255)
        return {self.name: Drawn(z, 0.0, "")}


WAYS: Final[Sequence[Way]] = [
    _Scenes(),
    Composed("A: shapes-round", _always(A), _UNGUIDED, rows_each=25),
    Composed("B: shapes-sharp", _always(B), _UNGUIDED, rows_each=25),
    Composed("joint model: shapes", _always(Prompt("", "shapes")), _UNGUIDED, rows_each=25),
    Composed("coin flip", _coin, _UNGUIDED, rows_each=25),
    Composed("average", _always(Average((A, B))), _UNGUIDED, rows_each=50),
    Composed("OR, T = 1", _always(Or((A, B))), _UNGUIDED, rows_each=50),
    Composed("OR, T = 100", _always(Or((A, B), 100.0)), _UNGUIDED, rows_each=50),
]


def _scene(rng: np.random.Generator) -> Scene:
    return draw_scene(rng, ROUND if rng.random() < 0.5 else SHARP)


class Halves:
    """The suite."""

    name = "halves"
    needs = ("classifier",)

    def blocks(self, scope: Scope) -> list[Block]:
        """As :meth:`evaluation.suite.Suite.blocks`."""
        asked = self.asked(scope)
        return [b for way in WAYS for b in blocks_of(self.name, way.name, way, asked, self.ones(scope))]

    def ones(self, scope: Scope) -> tuple[int, ...]:
        """One candidate for every chunk of pictures."""
        return (1,) * -(-len(self.asked(scope)) // CHUNK)

    def asked(self, scope: Scope) -> list[Asked]:
        """Pictures without captions; every way has the same seeds."""
        first = first_seed(scope.split, _STREAM)
        return [Asked((), first + i) for i in range(_QUICK_PICTURES if scope.quick else PICTURES)]

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """As :meth:`evaluation.suite.Suite.measure`."""
        way = next(way for way in WAYS if way.name == block.cell)
        way, asked = part(block, way, self.asked(scope), self.ones(scope))
        (drawn,) = way.draw(asked, bench.catalog).values()
        pixels = to_pixels(bench.catalog.get("shapes").decode(drawn.z))
        found = read(pixels)
        kinds = [shapes_of(f) for f in found]
        verdicts = {
            _ROUND: [bool(k) and k <= set(ROUND) for k in kinds],
            _SHARP: [bool(k) and k <= set(SHARP) for k in kinds],
            _MIXED: [bool(k & set(ROUND)) and bool(k & set(SHARP)) for k in kinds],
            FORMED: [well_formed(f) for f in found],
        }
        lines = {way.name: {"rows": drawn.rows, "settings": drawn.settings, "verdicts": verdicts}}
        arrays: dict[str, NDArray[np.generic]] = {"features": features(bench.classifier, pixels).astype(np.float32)}
        if block.index == 0:
            arrays[f"pictures: {way.name}"] = pixels[:SHOWN]
            arrays["real"] = _real_features(scope, bench)
        return Outcome({"seeds": [p.seed for p in asked], "lines": lines}, arrays)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        shares: dict[str, list[Cell]] = {}
        distances: dict[str, list[Cell]] = {}
        shown: dict[str, NDArray[np.uint8]] = {}
        for way in WAYS:
            outcomes = cell_of(results, way.name)
            if not outcomes or "real" not in outcomes[0].arrays:
                continue
            j = Judged(outcomes, way.name)
            clear = Rate.of(
                [r for r, s in zip(j.verdicts[_ROUND], j.verdicts[_SHARP], strict=True) if r or s] or [False]
            )
            shares[way.name] = [len(j.seeds), clear, j.rate(_MIXED), j.rate(FORMED), round(j.rows)]
            drawn = np.concatenate([o.arrays["features"] for o in outcomes]).astype(np.float64)
            real = outcomes[0].arrays["real"].astype(np.float64)
            overlap = Manifold.of(real, drawn)
            distances[way.name] = [
                _frechet(real, drawn),
                overlap.precision,
                overlap.recall,
                overlap.density,
                overlap.coverage,
            ]
            if j.shown is not None:
                shown[way.name] = j.shown
        text = (
            "Two models that have each seen half of the kinds of shapes. OR of both without prompts should draw what"
            " one of them would: scenes of round shapes, or of sharp ones, half and half, as a coin between them does."
        )
        note = (
            f"Features of a small classifier of ours; {_REAL} real scenes of the union. The distance of a finite set is"
            " above that of its distribution: compare within this table only. The interval is the distance ± 1.96"
            " bootstrap standard deviations. The joint model has seen scenes that mix the kinds: its truth is another."
        )
        columns = ["pictures", "of one kind: round", _MIXED, FORMED, "rows a picture"]
        overlaps = ["Fréchet distance", "precision", "recall", "density", "coverage"]
        tables = [Table("What was drawn", columns, shares), Table("How far from the union", overlaps, distances, note)]
        return Section(self.name, "Halves: OR of two models", text, [*tables, Gallery("The same seeds", shown)])


@cache
def _real_features(scope: Scope, bench: Bench) -> NDArray[np.float32]:
    """(n, 64) features of real scenes of the union, the same for all ways."""
    rng = np.random.default_rng(first_seed(scope.split, _REAL_STREAM))
    scenes = [_scene(rng) for _ in range(_REAL // 10 if scope.quick else _REAL)]
    return features(bench.classifier, rendered(scenes)).astype(np.float32)


def _frechet(real: Vectors, drawn: Vectors) -> Estimate:
    """The distance, ± 1.96 standard deviations of a bootstrap over the drawn pictures."""
    value = frechet(real, drawn)
    rng = np.random.default_rng(0)
    again = [frechet(real, drawn[rng.integers(len(drawn), size=len(drawn))]) for _ in range(_RESAMPLES)]
    spread = _NORMAL * float(np.std(again))
    return Estimate(value, max(0.0, value - spread), value + spread, len(drawn))


SUITE: Final = Halves()
