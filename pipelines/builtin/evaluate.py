"""What the builtin models draw, counted by the oracle: ``python -m pipelines.builtin.evaluate``.

Every rate stands with its number of trials and Wilson's 95 % interval. Everything is seeded: two runs print one table.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.builtin.captions import Phrase, full_names
from pipelines.builtin.oracle import Found, holds, names, read_picture, shapes_of, well_formed
from pipelines.builtin.scenes import COLOURS, ROUND, SHAPES, SHARP, SIZE, Scene, draw_scene, render
from pipelines.canvas import Canvas
from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Expression, Or, Product, Prompt, leaves
from pipelines.entry import BUILTIN_FOLDER, BUILTIN_MODELS, Entry
from pipelines.model import Model
from pipelines.params import SamplingParams
from pipelines.sampler import sample

STEPS: Final = 25
MEASUREMENTS: Final = ("single", "pairs", "halves", "or", "across", "repaint", "strength", "explain")
GUIDANCES: Final = (4.0, 8.0)
SEEDS: Final = 32
_PAIRS: Final = 24
_PAIR_SEEDS: Final = 8
_HALF_SEEDS: Final = 32
_EXPLAIN_STEPS: Final = 12
_EXPLAIN_DRAWS: Final = 2
_CELL: Final = 8
_Z: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something was so."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson, JASA 1927)."""
        n, p = self.trials, self.value
        centre, spread = p + _Z**2 / (2 * n), _Z * sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        return max(0.0, (centre - spread) / (1 + _Z**2 / n)), min(1.0, (centre + spread) / (1 + _Z**2 / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def rate(verdicts: Sequence[bool]) -> Rate:
    """The share of true verdicts."""
    return Rate(sum(verdicts), len(verdicts))


def draw(
    expression: Expression,
    models: Mapping[str, Model],
    *,
    guidance: float,
    images: int = SEEDS,
    canvas: Canvas | None = None,
    strength: float = 1.0,
) -> list[list[Found]]:
    """Sample pictures with the default kernel and 25 steps, and let the oracle read them."""
    params = SamplingParams(steps=STEPS, guidance_scale=guidance, num_images=images, strength=strength)
    samples = sample(expression, params, models, canvas=canvas)
    pictures = models[leaves(expression)[0].model].decode(samples.z)
    pixels = pictures.permute(0, 2, 3, 1).mul(255).round().byte().cpu().numpy()
    return [read_picture(picture) for picture in pixels]


def single_prompts(models: Mapping[str, Model], guidance: float) -> dict[str, Rate]:
    """24 captions × 32 seeds on `shapes`: is the named object there, and is the picture a scene of 1–3 shapes?"""
    there, formed = [], []
    for caption in tqdm(full_names(), desc=f"single prompts, guidance {guidance:g}"):
        found = draw(Prompt(caption, "shapes"), models, guidance=guidance)
        there += [holds(f, caption) for f in found]
        formed += [well_formed(f) for f in found]
    return {"named object there": rate(there), "1–3 well-formed objects": rate(formed)}


def halves(models: Mapping[str, Model], guidance: float) -> dict[str, Rate]:
    """How often a half draws a shape of the other half: without a prompt, and on the captions of its own shapes."""
    rates = {}
    for name, own, other in (("shapes-round", ROUND, SHARP), ("shapes-sharp", SHARP, ROUND)):
        captions = [str(Phrase(colour, shape)) for shape in own for colour in COLOURS]
        strangers, there = [], []
        for caption in tqdm(["", *captions], desc=f"{name}, guidance {guidance:g}"):
            found = draw(Prompt(caption, name), models, guidance=guidance, images=_HALF_SEEDS)
            strangers += [bool(shapes_of(f) & set(other)) for f in found]
            there += [holds(f, caption) for f in found] if caption else []
        rates[f"{name}: a {other[0]} or {other[1]}"] = rate(strangers)
        rates[f"{name}: named object there"] = rate(there)
    return rates


def mixture_of_halves(models: Mapping[str, Model]) -> dict[str, Rate]:
    """OR of the two halves without prompts, 512 pictures: which half's shapes appear."""
    expression = Or((Prompt("", "shapes-round"), Prompt("", "shapes-sharp")))
    found = draw(expression, models, guidance=1.0, images=512)
    kinds = [shapes_of(f) for f in found]
    clear = [k for k in kinds if k and (k <= set(ROUND) or k <= set(SHARP))]
    return {
        "shapes of one half only": Rate(len(clear), len(kinds)),
        "of those, round": rate([k <= set(ROUND) for k in clear]),
    }


def pairs(count: int = _PAIRS) -> list[tuple[str, str]]:
    """Pairs of captions that differ in colour and in shape, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    colours, made = list(COLOURS), []
    for _ in range(count):
        shapes, hues = rng.permutation(SHAPES)[:2], rng.permutation(colours)[:2]
        made.append((str(Phrase(hues[0], shapes[0])), str(Phrase(hues[1], shapes[1]))))
    return made


def composed_pairs(models: Mapping[str, Model], guidance: float) -> dict[str, dict[str, Rate]]:
    """24 pairs × 8 seeds on `shapes`, by operator: are both objects there, either of them, is it a scene?"""

    def joint(a: str, b: str) -> Expression:
        return Prompt(f"{a} and {b}", "shapes")

    def over(operator: Callable[[tuple[Prompt, ...]], Expression]) -> Callable[[str, str], Expression]:
        return lambda a, b: operator((Prompt(a, "shapes"), Prompt(b, "shapes")))

    ways = {"joint prompt": joint, "AND": over(And), "average": over(Average), "product": over(Product)}
    table = {}
    for name, way in ways.items():
        both, either, formed = [], [], []
        for a, b in tqdm(pairs(), desc=f"{name}, guidance {guidance:g}"):
            for found in draw(way(a, b), models, guidance=guidance, images=_PAIR_SEEDS):
                both.append(holds(found, f"{a} and {b}"))
                either.append(holds(found, a) or holds(found, b))
                formed.append(well_formed(found))
        table[name] = {"both": rate(both), "at least one": rate(either), "1–3 well-formed": rate(formed)}
    return table


def across_halves(models: Mapping[str, Model], guidance: float) -> dict[str, Rate]:
    """AND of a round thing from one half and a sharp thing from the other: neither model has ever seen both."""
    both, either, formed = [], [], []
    rng = np.random.default_rng(1)
    for _ in tqdm(range(_PAIRS), desc=f"AND across halves, guidance {guidance:g}"):
        hues = rng.permutation(list(COLOURS))
        a, b = str(Phrase(hues[0], rng.choice(ROUND))), str(Phrase(hues[1], rng.choice(SHARP)))
        expression = And((Prompt(a, "shapes-round"), Prompt(b, "shapes-sharp")))
        for found in draw(expression, models, guidance=guidance, images=_PAIR_SEEDS):
            both.append(holds(found, f"{a} and {b}"))
            either.append(holds(found, a) or holds(found, b))
            formed.append(well_formed(found))
    return {"both": rate(both), "at least one": rate(either), "1–3 well-formed": rate(formed)}


def _scenes(count: int, things: int, seed: int) -> list[Scene]:
    """Random scenes of just so many things, each of another name."""
    rng = np.random.default_rng(seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = draw_scene(rng)
        if len({thing.name for thing in scene.things}) == len(scene.things) == things:
            found.append(scene)
    return found


def _latents(model: Model, scene: Scene) -> Tensor:
    pixels = torch.from_numpy(np.array(render(scene))).permute(2, 0, 1).unsqueeze(0)
    return model.encode(pixels.float() / 255)


def repainted(models: Mapping[str, Model], guidance: float) -> dict[str, Rate]:
    """Of 48 scenes of two things, one is masked and another thing asked for in its place, 4 seeds each."""
    model, rng = models["shapes"], np.random.default_rng(2)
    there, gone, kept, all_at_once = [], [], [], []
    for scene in tqdm(_scenes(48, 2, seed=3), desc=f"repainting, guidance {guidance:g}"):
        old, other = scene.things
        new = rng.choice([n for n in full_names() if n.removeprefix("a ") not in {old.name, other.name}])
        y, x = np.mgrid[: SIZE // _CELL, : SIZE // _CELL] * _CELL
        near = [abs(at + _CELL / 2 - c) < old.radius + _CELL / 2 for at, c in ((x, old.x), (y, old.y))]
        mask = torch.from_numpy(np.logical_and(*near)).float()[None, None]
        canvas = Canvas(_latents(model, scene), mask)
        for found in draw(Prompt(str(new), "shapes"), models, guidance=guidance, images=4, canvas=canvas):
            drawn = names(found)
            there.append(holds(found, str(new)))
            gone.append(old.name not in drawn)
            kept.append(other.name in drawn)
            all_at_once.append(there[-1] and gone[-1] and kept[-1])
    return {
        "new one there": rate(there),
        "old one gone": rate(gone),
        "the other kept": rate(kept),
        "all three": rate(all_at_once),
    }


def kept_by_strength(models: Mapping[str, Model]) -> dict[str, dict[str, Rate]]:
    """Image-to-image of 48 scenes of one thing towards another caption, 4 seeds each, by strength."""
    model, rng = models["shapes"], np.random.default_rng(4)
    lines = {}
    for strength in (0.25, 0.5, 0.75, 0.9):
        old_there, new_there = [], []
        for scene in tqdm(_scenes(48, 1, seed=5), desc=f"strength {strength:g}"):
            (old,) = scene.things
            new = rng.choice([name for name in full_names() if name.removeprefix("a ") != old.name])
            canvas = Canvas(_latents(model, scene))
            asked = Prompt(str(new), "shapes")
            for found in draw(asked, models, guidance=4.0, images=4, canvas=canvas, strength=strength):
                old_there.append(old.name in names(found))
                new_there.append(holds(found, str(new)))
        lines[f"strength {strength:g}"] = {"old one there": rate(old_there), "new one there": rate(new_there)}
    return lines


def explained(models: Mapping[str, Model]) -> dict[str, Rate]:
    """Which of the 24 captions has the highest density on rendered scenes of one thing, 48 of them."""
    captions = full_names()
    first, second_best = [], []
    for scene in tqdm(_scenes(48, 1, seed=6), desc="explaining"):
        densities = []
        for some in (captions[:12], captions[12:]):
            expression = Average(tuple(Prompt(caption, "shapes") for caption in some))
            params = SamplingParams(steps=_EXPLAIN_STEPS, guidance_scale=1.0, num_images=_EXPLAIN_DRAWS)
            canvas = Canvas(_latents(models["shapes"], scene), retrace=True)
            densities.append(sample(expression, params, models, canvas=canvas).log_density.mean(0))
        ranked = [captions[int(i)] for i in torch.cat(densities).argsort(descending=True)]
        truth = f"a {scene.things[0].name}"
        first.append(ranked[0] == truth)
        second_best.append(truth in ranked[:2])
    return {"right caption first": rate(first), "among the first two": rate(second_best)}


def measurements(models: Mapping[str, Model]) -> dict[str, Callable[[], dict[str, dict[str, Rate]]]]:
    """Every measurement by name; each gives the lines of its table."""

    def at_both(measure: Callable[[Mapping[str, Model], float], dict[str, Rate]]) -> dict[str, dict[str, Rate]]:
        return {f"guidance {g:g}": measure(models, g) for g in GUIDANCES}

    return {
        "single": lambda: at_both(single_prompts),
        "pairs": lambda: {
            f"{name}, guidance {g:g}": row for g in GUIDANCES for name, row in composed_pairs(models, g).items()
        },
        "halves": lambda: at_both(halves),
        "or": lambda: {"OR of the halves, no prompts": mixture_of_halves(models)},
        "across": lambda: at_both(across_halves),
        "repaint": lambda: at_both(repainted),
        "strength": lambda: kept_by_strength(models),
        "explain": lambda: {f"{_EXPLAIN_STEPS} steps, {_EXPLAIN_DRAWS} draws": explained(models)},
    }


def table(lines: Mapping[str, Mapping[str, Rate]]) -> str:
    """A Markdown table, one line a setting."""
    columns = list(next(iter(lines.values())))
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(str(rates[column]) for column in columns)] for name, rates in lines.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measure what is asked for, print it as Markdown, and add it to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.builtin.evaluate", description=__doc__)
    parser.add_argument("--models", type=Path, default=BUILTIN_FOLDER, help="the folder of the models")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation.json"))
    parser.add_argument("--only", nargs="*", choices=MEASUREMENTS, help="which tables; all by default")
    arguments = parser.parse_args()
    there = {folder.name for folder in arguments.models.iterdir()}
    catalog = Catalog(Entry(name, arguments.models / name) for name in BUILTIN_MODELS if name in there)
    models = {name: catalog.get(name) for name in catalog.names}
    stored = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, measure in measurements(models).items():
        if arguments.only and name not in arguments.only:
            continue
        lines = measure()
        print(f"{name}\n\n{table(lines)}\n", flush=True)
        stored[name] = {k: {c: [r.hits, r.trials] for c, r in rates.items()} for k, rates in lines.items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
