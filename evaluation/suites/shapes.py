"""What the builtin models draw, for their card: single prompts, the halves' captions, pictures in, densities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from evaluation.asked import Asked, Split, first_seed, pictures
from evaluation.findings import Cell, Section, Table
from evaluation.judges.oracle import BOTH, FORMED, compositions, read, shows
from evaluation.pictures import CHUNK, Judged, judged, measure, to_pixels
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results
from evaluation.ways import Composed, meter
from pipelines.builtin.captions import Phrase, full_names
from pipelines.builtin.oracle import Found, names, shapes_of
from pipelines.builtin.scenes import COLOURS, ROUND, SHARP, SIZE, Scene, draw_scene, render
from pipelines.canvas import Canvas
from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Method, Prompt
from pipelines.params import SamplingParams
from pipelines.sampler import sample

GUIDANCES: Final = (4.0, 8.0)
_SCENES: Final = 48
_EACH: Final = 2
_QUICK_PICTURES: Final = 1
_QUICK_ROWS: Final = 50
_STRENGTHS: Final = (0.25, 0.5, 0.75, 0.9)
_THERE: Final = "named thing there"
_STRANGER: Final = "a shape of the other half"
_NEW, _OLD, _GONE, _KEPT, _ALL = "new one there", "old one there", "old one gone", "the other kept", "all three"
_FIRST, _SECOND = "right caption first", "among the first two"
_EXPLAIN_STEPS: Final = 12
_EXPLAIN_DRAWS: Final = 2
_CAPTIONS_TOGETHER: Final = 12
# Pixels of a latent cell.
_CELL: Final = 8


@dataclass(frozen=True)
class Measurement:
    """One line of a table.

    Attributes:
        table: Whose.
        line: Its name there.
        pictures: How many.
        rows: About how many network rows a picture takes.
        run: (places of the pictures to draw, scope, the builtin models) → outcome.
    """

    table: str
    line: str
    pictures: int
    rows: float
    run: Callable[[range, Scope, Catalog], Outcome]

    @property
    def cell(self) -> str:
        """Its name in the store."""
        return f"{self.table}: {self.line}"


def _guided(guidance: float) -> dict[str, float]:
    return {"guidance_scale": guidance, "guidance_start": 0.0}


def _single(model: str, shapes: Sequence[str], strangers: Sequence[str], each: int, guidance: float) -> Measurement:
    """Captions of one thing: is it there, is it a scene, is there a shape that the model has never seen?"""
    captions = [(str(Phrase(colour, shape)),) for shape in shapes for colour in COLOURS]
    line = f"{model}, guidance {guidance:g}"
    way = Composed(line, lambda asked: Prompt(asked.captions[0], model), _guided(guidance), rows_each=50)

    def judge(found: Sequence[list[Found]], asked: Sequence[Asked]) -> dict[str, list[bool]]:
        verdicts = compositions(found, [p.captions for p in asked])
        return {
            _THERE: verdicts[BOTH],
            FORMED: verdicts[FORMED],
            _STRANGER: [bool(shapes_of(f) & set(strangers)) for f in found],
        }

    def run(places: range, scope: Scope, catalog: Catalog) -> Outcome:
        asked = pictures(captions, each, scope.split, 40)[places.start : places.stop]
        return measure(way, asked, catalog, judge, show=False)

    return Measurement("Single prompts", line, len(captions) * each, 50, run)


def _across(guidance: float) -> Measurement:
    """AND of a round thing from one half and a sharp thing from the other: neither model has ever seen both."""
    line = f"guidance {guidance:g}"

    def compose(asked: Asked) -> Expression:
        a, b = asked.captions
        return And((Prompt(a, "shapes-round"), Prompt(b, "shapes-sharp")), method=Method.BALANCED)

    def run(places: range, scope: Scope, catalog: Catalog) -> Outcome:
        rng = np.random.default_rng((scope.split.number, 1))
        sets = []
        for _ in range(_SCENES):
            hues = rng.permutation(list(COLOURS))
            sets.append((str(Phrase(hues[0], rng.choice(ROUND))), str(Phrase(hues[1], rng.choice(SHARP)))))
        asked = pictures(sets, _EACH, scope.split, 41)[places.start : places.stop]
        way = Composed(line, compose, _guided(guidance))
        return measure(way, asked, catalog, lambda f, a: compositions(f, [p.captions for p in a]), show=False)

    return Measurement("AND across the halves", line, _SCENES * _EACH, 100, run)


def scenes(count: int, things: int, split: Split, stream: int) -> list[Scene]:
    """Random scenes of so many things, each of another name."""
    rng = np.random.default_rng(first_seed(split, stream))
    found: list[Scene] = []
    while len(found) < count:
        scene = draw_scene(rng)
        if len({thing.name for thing in scene.things}) == len(scene.things) == things:
            found.append(scene)
    return found


def _latent(catalog: Catalog, scene: Scene) -> Tensor:
    pixels = torch.from_numpy(np.array(render(scene))).permute(2, 0, 1).unsqueeze(0)
    return catalog.get("shapes").encode(pixels.float() / 255)


def _on_scenes(
    line: str,
    places: range,
    catalog: Catalog,
    first: int,
    paint: Callable[[int], tuple[Canvas, str, SamplingParams, Callable[[list[Found]], Mapping[str, bool]]]],
) -> Outcome:
    """Draw on known scenes, one picture at a time.

    Args:
        line: The line's name.
        places: The pictures' places.
        catalog: The builtin models.
        first: The first place's seed.
        paint: Place → the canvas, the prompt, how to sample, and how to judge what was found.
    """
    metered, count = meter(catalog)
    verdicts: list[Mapping[str, bool]] = []
    for place in places:
        canvas, prompt, params, judge = paint(place)
        z = sample(Prompt(prompt, "shapes"), params, metered, canvas=canvas).z
        (found,) = read(to_pixels(catalog.get("shapes").decode(z)))
        verdicts.append(judge(found))
    columns = {name: [v[name] for v in verdicts] for name in verdicts[0]}
    lines = {line: {"rows": count() / len(places), "settings": "", "verdicts": columns}}
    return Outcome({"seeds": [first + place for place in places], "lines": lines})


def _repaint(guidance: float) -> Measurement:
    """Of a scene of two things, one is masked and another thing asked for in its place."""
    line = f"guidance {guidance:g}"

    def run(places: range, scope: Scope, catalog: Catalog) -> Outcome:
        known, first = scenes(_SCENES, 2, scope.split, 42), first_seed(scope.split, 43)
        new = _others(known, first)

        def paint(place: int) -> tuple[Canvas, str, SamplingParams, Callable[[list[Found]], Mapping[str, bool]]]:
            i = place % _SCENES
            old, other = known[i].things
            y, x = np.mgrid[: SIZE // _CELL, : SIZE // _CELL] * _CELL
            near = [abs(at + _CELL / 2 - c) < old.radius + _CELL / 2 for at, c in ((x, old.x), (y, old.y))]
            mask = torch.from_numpy(np.logical_and(*near)).float()[None, None]

            def judge(found: list[Found]) -> dict[str, bool]:
                there, drawn = shows(found, new[i]), names(found)
                gone, kept = old.name not in drawn, other.name in drawn
                return {_NEW: there, _GONE: gone, _KEPT: kept, _ALL: there and gone and kept}

            params = SamplingParams(guidance_scale=guidance, seed=first + place)
            return Canvas(_latent(catalog, known[i]), mask), new[i], params, judge

        return _on_scenes(line, places, catalog, first, paint)

    return Measurement("Repainting", line, _SCENES * _EACH, 50, run)


def _strength(strength: float) -> Measurement:
    """Image-to-image of a scene of one thing towards another caption."""
    line = f"strength {strength:g}"

    def run(places: range, scope: Scope, catalog: Catalog) -> Outcome:
        known, first = scenes(_SCENES, 1, scope.split, 44), first_seed(scope.split, 45)
        new = _others(known, first)

        def paint(place: int) -> tuple[Canvas, str, SamplingParams, Callable[[list[Found]], Mapping[str, bool]]]:
            i = place % _SCENES
            (old,) = known[i].things
            params = SamplingParams(guidance_scale=4.0, seed=first + place, strength=strength)
            canvas = Canvas(_latent(catalog, known[i]))
            return canvas, new[i], params, lambda f: {_OLD: old.name in names(f), _NEW: shows(f, new[i])}

        return _on_scenes(line, places, catalog, first, paint)

    return Measurement("Image-to-image", line, _SCENES * _EACH, 50 * strength, run)


def _others(known: Sequence[Scene], seed: int) -> list[str]:
    """For each scene a caption of a thing that is not in it."""
    rng = np.random.default_rng(seed)
    held = [{f"a {thing.name}" for thing in scene.things} for scene in known]
    return [str(rng.choice([name for name in full_names() if name not in there])) for there in held]


def _explain() -> Measurement:
    """Which of the 24 captions has the highest density on rendered scenes of one thing."""
    line, captions = f"{_EXPLAIN_STEPS} steps, {_EXPLAIN_DRAWS} draws", full_names()
    groups = [captions[i : i + _CAPTIONS_TOGETHER] for i in range(0, len(captions), _CAPTIONS_TOGETHER)]

    def run(places: range, scope: Scope, catalog: Catalog) -> Outcome:
        metered, count = meter(catalog)
        known, first = scenes(_SCENES, 1, scope.split, 46), first_seed(scope.split, 47)
        ranks = []
        for place in places:
            canvas = Canvas(_latent(catalog, known[place]), retrace=True)
            params = SamplingParams(
                steps=_EXPLAIN_STEPS, guidance_scale=1.0, seed=first + place * _EXPLAIN_DRAWS, num_images=_EXPLAIN_DRAWS
            )
            densities = [
                sample(Average(tuple(Prompt(c, "shapes") for c in some)), params, metered, canvas=canvas).log_density
                for some in groups
            ]
            order = torch.cat(densities, dim=1).mean(0).argsort(descending=True).tolist()
            ranks.append(order.index(captions.index(f"a {known[place].things[0].name}")))
        verdicts = {_FIRST: [r == 0 for r in ranks], _SECOND: [r < 2 for r in ranks]}
        lines = {line: {"rows": count() / len(places), "settings": "", "verdicts": verdicts}}
        return Outcome({"seeds": [first + p * _EXPLAIN_DRAWS for p in places], "lines": lines})

    return Measurement("Densities: which caption explains a scene", line, _SCENES, 24 * 12 * _EXPLAIN_DRAWS, run)


MEASUREMENTS: Final[Mapping[str, Measurement]] = {
    m.cell: m
    for m in (
        *(_single("shapes", (*ROUND, *SHARP), (), 16, g) for g in GUIDANCES),
        *(_single("shapes-round", ROUND, SHARP, 16, g) for g in GUIDANCES),
        *(_single("shapes-sharp", SHARP, ROUND, 16, g) for g in GUIDANCES),
        *(_across(g) for g in GUIDANCES),
        *(_repaint(g) for g in GUIDANCES),
        *(_strength(s) for s in _STRENGTHS),
        _explain(),
    )
}


class Shapes:
    """The suite."""

    name = "shapes"
    needs: tuple[str, ...] = ()

    def blocks(self, scope: Scope) -> list[Block]:
        """As :meth:`evaluation.suite.Suite.blocks`."""
        found = []
        for m in MEASUREMENTS.values():
            if scope.quick and m.rows > _QUICK_ROWS:
                continue
            places = range(_QUICK_PICTURES if scope.quick else m.pictures)
            starts = range(0, len(places), CHUNK)
            found += [Block(self.name, m.cell, i, m.rows * len(places[at : at + CHUNK])) for i, at in enumerate(starts)]
        return found

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """As :meth:`evaluation.suite.Suite.measure`."""
        m = MEASUREMENTS[block.cell]
        places = range(_QUICK_PICTURES if scope.quick else m.pictures)[block.index * CHUNK : (block.index + 1) * CHUNK]
        return m.run(places, scope, bench.catalog)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        tables = []
        for title in dict.fromkeys(m.table for m in MEASUREMENTS.values()):
            lines = [m.line for m in MEASUREMENTS.values() if m.table == title]
            if found := judged(results, lines, f"{title}: "):
                tables.append(_table(title, found))
        text = "What the models that ship draw with 25 steps of the calibrated kernel, read by the oracle."
        return Section(self.name, "The builtin models", text, tables)


def _table(title: str, found: Mapping[str, Judged]) -> Table:
    columns = list(next(iter(found.values())).verdicts)
    rows: dict[str, list[Cell]] = {
        line: [len(j.seeds), *(j.rate(column) for column in columns), round(j.rows)] for line, j in found.items()
    }
    return Table(title, ["pictures", *columns, "rows a picture"], rows)


SUITE: Final = Shapes()
