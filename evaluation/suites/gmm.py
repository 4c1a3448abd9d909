"""Exact Gaussian mixtures: every operator against its truth, by steps, kernel, particles and dimension.

All densities are known, so an error here is the estimator's or the sampler's own, never a network's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import log, pi
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation import reference
from evaluation.asked import first_seed
from evaluation.findings import Cell, Chart, Point, Section, Table
from evaluation.mixtures import compare, log_density, measured_model
from evaluation.problems import MODEL, PROBLEMS, Problem, unconditional
from evaluation.statistics import Estimate, bootstrap_mean, root
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results, cell_of
from evaluation.ways import plan_of, sample_together
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.kernel import Kernel
from pipelines.mixing import node_log_densities
from pipelines.params import SamplingParams
from pipelines.sampler import SamplerState

SAMPLES: Final = 1000
REPEATS: Final = 5
_PARTICLE_SAMPLES: Final = 400
_LARGE: Final = 64
_LONG: Final = 200
_LARGE_SAMPLES: Final = 250
_QUICK_SAMPLES: Final = 100
_QUICK_REPEATS: Final = 2
_QUICK_STEPS: Final = 20
_QUICK_DIMENSION: Final = 64
_QUICK_PARTICLES: Final = 4
_STREAM: Final = 10
_AUTHORS: Final = "authors'"
_SHIPPED: Final = "authors', as shipped"
# A step of one sample in the time of a network row: measured once, good for the progress bar.
_ROWS_A_STEP: Final = 0.0025


@dataclass(frozen=True)
class Setting:
    """One line of the tables.

    Attributes:
        problem: Its name.
        dimension: D.
        sampler: A kernel's name, or one of the authors' loops.
        steps: N.
        particles: K.
    """

    problem: str
    dimension: int
    sampler: str
    steps: int
    particles: int = 1

    @property
    def cell(self) -> str:
        """Its name in the store."""
        return f"{self.problem}, D {self.dimension}, {self.line}"

    @property
    def line(self) -> str:
        """Its name among the lines of one problem and dimension."""
        particles = f", {self.particles} particles" if self.particles > 1 else ""
        return f"{self.sampler}, {self.steps} steps{particles}"

    @property
    def samples(self) -> int:
        """Samples of a repeat."""
        if self.dimension > _LARGE:
            return _LARGE_SAMPLES
        return SAMPLES if self.particles == 1 else _PARTICLE_SAMPLES


class Drawn(NamedTuple):
    """What a sampler gave.

    Attributes:
        z: (B, D) samples.
        before: (B, D) the samples at the last level above 0, without those that particles lost against.
        sigma: That level.
        root: (B,) the estimated log-density of the whole expression there; None where it has none.
    """

    z: Tensor
    before: Tensor
    sigma: float
    root: Tensor | None


def _settings() -> list[Setting]:
    calibrated = str(Kernel.CALIBRATED)
    found = []
    for problem in ("OR", "balanced AND"):
        for d in (2, 64, 1024):
            found += [Setting(problem, d, calibrated, n) for n in (10, 20, 50)]
            found += [Setting(problem, d, str(k), 20) for k in (Kernel.EULER_MARUYAMA, Kernel.POSTERIOR, Kernel.EXACT)]
            found += [Setting(problem, d, _AUTHORS, n) for n in (25, 100, 200, 1000) if d <= _LARGE or n <= _LONG]
            found += [Setting(problem, d, _SHIPPED, 200)] if problem == "OR" else []
    for problem in ("OR of 3", "OR of 5", "balanced AND of 3", "balanced AND of 5"):
        found += [Setting(problem, 64, calibrated, 20)]
    # In 64 dimensions rejection finds few samples of the last four.
    for problem, dimensions in (
        ("product", (2, 64)),
        *((name, (2, 16)) for name in ("geometric mean", "soft AND", "AND over OR", "AND NOT")),
    ):
        for d in dimensions:
            found += [Setting(problem, d, calibrated, 20, k) for k in (1, 4, 16)]
            found += [Setting(problem, d, calibrated, 100)]
    found += [Setting("product", d, calibrated, 100, 16) for d in (2, 64)]
    # Whether it is the particles that limit the line before.
    found += [Setting("product", 2, calibrated, 100, 64)]
    return found


SETTINGS: Final[Mapping[str, Setting]] = {setting.cell: setting for setting in _settings()}


class Mixtures:
    """The suite."""

    name = "gmm"
    needs: tuple[str, ...] = ()

    def blocks(self, scope: Scope) -> list[Block]:
        """As :meth:`evaluation.suite.Suite.blocks`; one block a repeat, so that repeats are independent."""
        repeats = _QUICK_REPEATS if scope.quick else REPEATS
        chosen = [s for s in SETTINGS.values() if not scope.quick or _is_quick(s)]
        return [Block(self.name, s.cell, i, _work(s, scope)) for s in chosen for i in range(repeats)]

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """As :meth:`evaluation.suite.Suite.measure`."""
        setting = SETTINGS[block.cell]
        problem, count = PROBLEMS[setting.problem], _QUICK_SAMPLES if scope.quick else setting.samples
        seed = first_seed(scope.split, _STREAM) + block.index * SAMPLES
        parts, wide = problem.densities(setting.dimension), unconditional(setting.dimension)
        draw = _ours if setting.sampler in set(Kernel) else _authors
        drawn = draw(setting, problem, parts, seed, count)
        exact = torch.stack([log_density(p, drawn.before, drawn.sigma) for p in parts], 1)
        numbers: dict[str, float] = {}
        if problem.truth is None or problem.level is None:
            numbers["squared gap"] = float((exact[:, :-1] - exact[:, -1:]).square().mean())
            return Outcome(numbers)
        truth = problem.truth(parts, wide)
        fit = compare(drawn.z, truth, seed)
        numbers |= {"w2": fit.squared_w2, "floor": fit.squared_floor, "level": fit.log_density, "count": count}
        if drawn.root is not None:
            exact_root = problem.level(parts, wide, drawn.before, drawn.sigma)
            numbers["squared error"] = float((drawn.root - exact_root).square().mean())
        if setting.problem.startswith("OR"):
            clean = torch.stack([log_density(p, drawn.z, 0.0) for p in parts], 1)
            numbers["share"] = float((clean.argmax(1) == 0).double().mean())
        return Outcome(numbers)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        problems = list(dict.fromkeys((s.problem, s.dimension) for s in SETTINGS.values()))
        parts: list[Table | Chart] = []
        for problem, dimension in problems:
            lines = [s for s in SETTINGS.values() if (s.problem, s.dimension) == (problem, dimension)]
            if lines := [s for s in lines if cell_of(results, s.cell)]:
                parts += _parts(results, problem, dimension, lines)
        text = (
            "Random Gaussian mixtures of five modes in D dimensions are the models: scores and densities are exact, so"
            " each operator is held against its truth. W2 is the sliced 2-Wasserstein distance of the samples to exact"
            " ones, over the same between two exact sets of that size: 1 is perfect."
        )
        return Section(self.name, "Exact mixtures", text, parts)


def _is_quick(setting: Setting) -> bool:
    return (
        setting.steps <= _QUICK_STEPS
        and setting.dimension <= _QUICK_DIMENSION
        and setting.particles <= _QUICK_PARTICLES
        and setting.sampler == Kernel.CALIBRATED
    )


def _work(setting: Setting, scope: Scope) -> float:
    count = _QUICK_SAMPLES if scope.quick else setting.samples
    return _ROWS_A_STEP * setting.steps * setting.particles * count * (1 + setting.dimension / 64)


@cache
def _model(name: str, dimension: int) -> AnalyticModel:
    """A problem's mixtures as a model."""
    parts = PROBLEMS[name].densities(dimension)
    return measured_model(unconditional(dimension), {f"p{i}": part for i, part in enumerate(parts)})


def _ours(setting: Setting, problem: Problem, parts: Sequence[GaussianMixture], seed: int, count: int) -> Drawn:
    """By the product's sampler, in float64."""
    models = {MODEL: _model(setting.problem, setting.dimension)}
    params = SamplingParams(
        steps=setting.steps,
        guidance_scale=1.0,
        seed=seed,
        num_images=count,
        kernel=Kernel(setting.sampler),
        particles=setting.particles,
    )
    seen: list[SamplerState] = []

    def watch(states: Sequence[SamplerState]) -> None:
        seen[:] = states

    plan = plan_of(problem.expression(), params, models)
    (state,) = sample_together([plan], models, torch.float64, watch)
    before = seen[0]
    return Drawn(state.z, before.z, before.sigma, node_log_densities(plan.reported, before.log_q).get(()))


def _authors(setting: Setting, problem: Problem, parts: Sequence[GaussianMixture], seed: int, count: int) -> Drawn:
    """By the authors' loop."""
    model = _model(setting.problem, setting.dimension)
    components = [reference.Component(model, [f"p{i}"] * count) for i in range(len(parts))]
    operator = reference.Operator.OR if setting.problem == "OR" else reference.Operator.AND
    chosen = reference.Settings(operator, setting.steps, as_shipped=setting.sampler == _SHIPPED)
    outcome = reference.sample(components, range(seed, seed + count), chosen)
    sigma_max = model.card.sigma_max
    start = outcome.start.square().sum(1) / (-2 * sigma_max**2) - setting.dimension / 2 * log(2 * pi * sigma_max**2)
    log_q = outcome.log_q + start.unsqueeze(1)
    mixed = log_q.logsumexp(1) - log(len(parts)) if setting.problem == "OR" else None
    return Drawn(outcome.z, outcome.before, model.card.sigma_min, mixed)


def _numbers(results: Results, setting: Setting, key: str) -> list[float]:
    return [float(outcome.numbers[key]) for outcome in cell_of(results, setting.cell)]


def _ratio(results: Results, setting: Setting, peers: Sequence[Setting]) -> Estimate:
    """√(E W2²/E floor²); the floor is that of all lines with as many samples, since it does not depend on the line."""
    count = _numbers(results, setting, "count")[0]
    same = [s for s in peers if _numbers(results, s, "count")[0] == count]
    floor = float(np.mean([f for s in same for f in _numbers(results, s, "floor")]))
    return root(bootstrap_mean([w / floor for w in _numbers(results, setting, "w2")]))


def _parts(results: Results, problem: str, dimension: int, lines: Sequence[Setting]) -> list[Table | Chart]:
    title = f"{problem[0].upper()}{problem[1:]} in {dimension} dimensions"
    if "squared gap" in cell_of(results, lines[0].cell)[0].numbers:
        gap = "true gap, rms nats"
        rows: dict[str, list[Cell]] = {
            s.line: [root(bootstrap_mean(_numbers(results, s, "squared gap")))] for s in lines
        }
        table = Table(title, [gap], rows, "The gap is log q_i − log q_M of the exact densities at σ_min.")
        return [
            table,
            *_curve(title, gap, lines, lambda s: root(bootstrap_mean(_numbers(results, s, "squared gap"))), {}),
        ]
    shares = problem.startswith("OR")
    rows = {}
    for s in lines:
        errors = cell_of(results, s.cell)[0].numbers.get("squared error")
        rows[s.line] = [
            _ratio(results, s, lines),
            bootstrap_mean(_numbers(results, s, "level")),
            None if errors is None else root(bootstrap_mean(_numbers(results, s, "squared error"))),
            *([bootstrap_mean(_numbers(results, s, "share"))] if shares else []),
        ]
    columns = ["W2 / floor", "mean log p, less the truth's", "error of its log q, rms nats"]
    columns += ["share of the first"] if shares else []
    table = Table(title, columns, rows)
    return [table, *_curve(title, "W2 / floor", lines, lambda s: _ratio(results, s, lines), {"floor": 1.0})]


def _curve(
    title: str, y: str, lines: Sequence[Setting], value: Callable[[Setting], Estimate], drawn: Mapping[str, float]
) -> list[Chart]:
    """Over the steps by sampler, or over the particles by steps; none for a single line."""
    by_particles = any(s.particles > 1 for s in lines)
    curves: dict[str, list[Point]] = {}
    for s in lines:
        e = value(s)
        name, x = (f"{s.steps} steps", s.particles) if by_particles else (s.sampler, s.steps)
        curves.setdefault(name, []).append(Point(x, e.value, e.low, e.high))
    if len(lines) == 1:
        return []
    axis = "particles" if by_particles else "steps"
    return [Chart(title, axis, y, curves, log_x=True, log_y=True, lines=drawn)]


SUITE: Final = Mixtures()
