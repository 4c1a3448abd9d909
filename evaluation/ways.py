"""Ways of drawing what is asked for: one of our operators, or the authors' own algorithm.

A new operator is one more :class:`Composed` in a suite.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from evaluation import reference
from evaluation.asked import Asked
from pipelines.catalog import Catalog
from pipelines.composition import Expression, Prompt
from pipelines.draws import Draw, NoiseSource
from pipelines.model import Condition, Model
from pipelines.networks import evaluate
from pipelines.params import SamplingParams
from pipelines.plan import Plan, make_plan
from pipelines.sampler import SamplerState, finish, prepare, step

_CANDIDATES: Final = (1, 2, 4, 8)


class Drawn(NamedTuple):
    """What a way drew.

    Attributes:
        z: (B, …) clean samples, one a picture, in the order in which they were asked for.
        rows: What a picture cost, in network rows.
        settings: How they were drawn, as tables say it.
    """

    z: Tensor
    rows: float
    settings: str


class Way(Protocol):
    """A way of drawing pictures."""

    @property
    def name(self) -> str:
        """The name of its results."""
        ...

    @property
    def expected_rows(self) -> int:
        """About how many network rows a picture takes, for the progress bar; tables show what was counted."""
        ...

    def draw(self, asked: Sequence[Asked], catalog: Catalog) -> dict[str, Drawn]:
        """Draw one picture of each.

        Returns:
            Line → pictures: one line, the way's own name; ways that choose among candidates have one for each number
            of candidates, since the first ones of many are those of few.
        """
        ...


@dataclass(frozen=True)
class Composed:
    """By the product's own sampler, with its own defaults for each expression.

    Attributes:
        name: The name of its results.
        compose: What is asked for → expression.
        params: What of :class:`SamplingParams` differs from the defaults of the expression.
        best_of: With candidates, the numbers of candidates that have a line each; the last one is drawn.
        rows_each: About how many network rows a sample takes.
    """

    name: str
    compose: Callable[[Asked], Expression]
    params: Mapping[str, Any] = field(default_factory=dict)
    best_of: Sequence[int] = (1,)
    rows_each: int = 75

    @property
    def expected_rows(self) -> int:
        """As in :class:`Way`."""
        particles = int(self.params.get("particles", 1))
        return self.rows_each * self.best_of[-1] * particles

    def draw(self, asked: Sequence[Asked], catalog: Catalog) -> dict[str, Drawn]:
        """As :meth:`Way.draw`; unrelated requests share each step."""
        metered, count = meter(catalog)
        states = self.states(asked, metered, catalog)
        rows, settings = count() / len(asked), settings_of(states[0].plan.params)
        if len(self.best_of) == 1:
            return {self.name: Drawn(torch.cat([finish(state).z for state in states]), rows, settings)}
        return {
            self.name if few == 1 else f"{self.name}, best of {few}": Drawn(
                torch.cat([finish(fewer_candidates(state, few)).z for state in states]),
                rows * few / self.best_of[-1],
                settings,
            )
            for few in self.best_of
        }

    def states(self, asked: Sequence[Asked], models: Mapping[str, Model], catalog: Catalog) -> list[SamplerState]:
        """The last states, with all candidates."""
        return sample_together([self.plan(picture, models, catalog) for picture in asked], models)

    def plan(self, picture: Asked, models: Mapping[str, Model], catalog: Catalog) -> Plan:
        """What one picture comes to."""
        expression = self.compose(picture)
        cards = {name: model.card for name, model in models.items()}
        chosen = asdict(catalog.defaults(expression, cards)) | {"candidates": self.best_of[-1]} | dict(self.params)
        return plan_of(expression, SamplingParams(seed=picture.seed, **chosen), models)


def settings_of(params: SamplingParams) -> str:
    """Such as "w 8 from 25 %": the guidance, and the share of the steps after which it begins."""
    start = f" from {100 * params.guidance_start:g} %" if params.guidance_start else ""
    return f"w {params.guidance_scale:g}{start}"


def with_candidates(way: Way, most: int) -> Way:
    """The way with up to so many candidates: a line each for 1, 2, 4, … of them."""
    return replace(way, best_of=tuple(k for k in _CANDIDATES if k <= most)) if isinstance(way, Composed) else way


@dataclass(frozen=True)
class Original:
    """By the authors' algorithm (:mod:`evaluation.reference`), on one model, one component a caption."""

    name: str
    operator: reference.Operator
    steps: int
    guidance: float = 7.5
    as_shipped: bool = False
    model: str = "shapes"

    @property
    def expected_rows(self) -> int:
        """Of two components with guidance."""
        return 3 * self.steps

    def draw(self, asked: Sequence[Asked], catalog: Catalog) -> dict[str, Drawn]:
        """As :meth:`Way.draw`."""
        metered, count = meter(catalog)
        components = [
            reference.Component(metered[self.model], texts)
            for texts in zip(*(picture.captions for picture in asked), strict=True)
        ]
        settings = reference.Settings(
            self.operator, self.steps, self.guidance, as_shipped=self.as_shipped, dtype=torch.float64
        )
        outcome = reference.sample(components, [picture.seed for picture in asked], settings)
        return {self.name: Drawn(outcome.z.float(), count() / len(asked), f"w {self.guidance:g}")}


class Metered:
    """A model that counts the rows that its network computes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict_noise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """As the model's own."""
        self.rows += len(z)
        return self._model.predict_noise(z, sigma, condition)


def meter(catalog: Catalog) -> tuple[dict[str, Model], Callable[[], int]]:
    """The models, counting; and the number of rows that all of them have computed since."""
    counting = {name: Metered(catalog.get(name)) for name in catalog.names}
    return {name: cast("Model", m) for name, m in counting.items()}, lambda: sum(m.rows for m in counting.values())


def plan_of(expression: Expression, params: SamplingParams, models: Mapping[str, Model]) -> Plan:
    """The plan of a request."""
    return make_plan(expression, params, {name: model.card for name, model in models.items()})


def sample_together(
    plans: Sequence[Plan],
    models: Mapping[str, Model],
    dtype: torch.dtype = torch.float32,
    watch: Callable[[Sequence[SamplerState]], None] | None = None,
) -> list[SamplerState]:
    """The last states of several requests, whose rows share each forward; each request draws what it would alone.

    Args:
        plans: Of one sample shape.
        models: By name.
        dtype: Of the samples.
        watch: Called with the states before every step.
    """
    sources = [NoiseSource(plan.params, plan.shape) for plan in plans]
    states = [prepare(plan, models, _typed(s.draw(), dtype)) for plan, s in zip(plans, sources, strict=True)]
    while going := [i for i, state in enumerate(states) if not state.done]:
        if watch is not None:
            watch(states)
        before = [states[i] for i in going]
        draws = [
            sources[i].draw() if state.draws else Draw.nothing(state.z, len(state.effective))
            for i, state in zip(going, before, strict=True)
        ]
        for i, state in zip(going, step(before, evaluate(before, models), draws), strict=True):
            states[i] = state
    return states


def _typed(draw: Draw, dtype: torch.dtype) -> Draw:
    return draw._replace(normals=draw.normals.to(dtype))


def fewer_candidates(state: SamplerState, few: int) -> SamplerState:
    """The last state of a request as it would be with its first ``few`` candidates alone.

    Candidates draw from streams of their own, so that these are the very same ones.
    """
    params = state.plan.params
    indices = torch.arange(params.samples // params.particles).reshape(params.num_images, params.candidates)[:, :few]
    plan = replace(state.plan, params=replace(params, candidates=few))
    return replace(state.take(indices.flatten()), plan=plan)


def over(
    operator: Callable[[tuple[Expression, ...]], Expression], model: str = "shapes"
) -> Callable[[Asked], Expression]:
    """An operator over a leaf for each caption."""
    return lambda asked: operator(tuple(Prompt(caption, model) for caption in asked.captions))


def joint(asked: Asked) -> Prompt:
    """One prompt that says it all: "a red circle and a blue star"."""
    return Prompt(" and ".join(asked.captions), "shapes")
