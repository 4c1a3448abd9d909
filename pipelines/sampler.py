"""The sampler: from an expression to samples of its superposition.

:func:`prepare` fixes everything that a request's course depends on; :func:`evaluate` asks the networks, once per model;
:func:`step` is pure arithmetic. All three take many requests at once, each at its own progress; :func:`sample` is the
plain loop over one.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.canvas import Canvas, begin, keep, known_variance, retraced
from pipelines.composition import And, Expression, Or, Product, Prompt, leaves
from pipelines.errors import IncompatibleModelsError, InvalidInputError, NonFiniteError
from pipelines.kernel import Kernel
from pipelines.layout import Layout, Row, lay_out, rule_of
from pipelines.model import Condition, Guidance, Model, Shape
from pipelines.params import SamplingParams, image_seed
from pipelines.schedule import Schedule, make_schedule
from pipelines.superposition import Rule, Step, superpose

# Nothing is sampled at strength 0, and so nothing is divided by this.
_TINY: Final = 1e-300


@dataclass(frozen=True, slots=True)
class SamplerState:
    """One request on its way; B images with M components.

    Attributes:
        z: (B, …) samples in variance-exploding coordinates, float32, on the device.
        log_q: (B, M) float64, log-densities so far in nats, from log N(z_T; 0, σ_max²) on.
        weights: (B, M) float64, κ of the last step taken.
        weight_sum: (B, M) float64, Σ κ over the steps taken.
        clamped: (B,) float64, at how many of them AND's weights were held back.
        index: Steps taken.
        schedule: The course.
        layout: The networks asked.
        conditions: One condition of one row for each of the layout's rows.
        rule: B rows.
        lifted: Whether the rule's numbers are AND's lifts, of which every step takes a share.
        canvas: The known picture that is painted on, if there is one.
    """

    z: Tensor
    log_q: Tensor
    weights: Tensor
    weight_sum: Tensor
    clamped: Tensor
    index: int
    schedule: Schedule
    layout: Layout
    conditions: tuple[Condition, ...]
    rule: Rule = field(repr=False)
    lifted: bool = False
    canvas: Canvas | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        """Whether the last step is taken."""
        return self.index == self.schedule.steps

    @property
    def log_density(self) -> Tensor:
        """(B, M) log-densities so far in nats; NaN where no step adds noise, since nothing is estimated then."""
        return self.log_q if self.schedule.estimates else torch.full_like(self.log_q, torch.nan)

    @property
    def mean_weights(self) -> Tensor:
        """(B, M) float64, the mean κ over the steps taken."""
        return self.weight_sum / max(1, self.index)


def check(
    expression: Expression, params: SamplingParams, models: Mapping[str, Model], *, on_canvas: bool = False
) -> None:
    """Refuse what has no meaning: models without a common data space, what a model cannot read or wear, guidance that
    it does not know, densities without noise, a size that it does not have.

    Args:
        expression: What to compose.
        params: How.
        models: The loaded models by name.
        on_canvas: Whether there is a known picture to paint on.
    """
    terms = leaves(expression)
    named = {term.model: models[term.model] for term in terms}
    spaces = {name: model.card.space for name, model in named.items()}
    if len(set(spaces.values())) > 1:
        raise IncompatibleModelsError({name: str(space) for name, space in spaces.items()})
    if max(m.card.sigma_min for m in named.values()) >= min(m.card.sigma_max for m in named.values()):
        ranges = {name: f"σ {m.card.sigma_min:.3g}–{m.card.sigma_max:.3g}" for name, m in named.items()}
        raise IncompatibleModelsError(ranges)
    for i, term in enumerate(terms):
        _check_term(i, term, expression, params, models[term.model])
    if params.kernel is Kernel.DETERMINISTIC and isinstance(expression, Or | And) and len(terms) > 1:
        allowed = ", ".join(kernel for kernel in Kernel if kernel is not Kernel.DETERMINISTIC)
        detail = f"the deterministic kernel has no density to weigh components by; allowed are {allowed}"
        raise InvalidInputError(detail, field=("kernel",))
    if params.strength < 1 and not on_canvas:
        raise InvalidInputError("strength below 1 needs an image to begin from", field=("strength",))
    sample_shape(expression, params, models)


def _check_term(index: int, term: Prompt, expression: Expression, params: SamplingParams, model: Model) -> None:
    """Refuse what a component's model cannot read, wear or follow."""
    where, card = ("components", index), model.card
    if term.text and not card.takes_prompts:
        raise InvalidInputError(f"the model {term.model!r} takes no prompts; leave it empty", field=(*where, "prompt"))
    negative = params.negative_prompt if term.negative is None else term.negative
    said = ("negative_prompt",) if term.negative is None else (*where, "negative_prompt")
    if negative and not card.takes_prompts:
        detail = f"the model {term.model!r} takes no prompts, so there is nothing to lead away from"
        raise InvalidInputError(detail, field=said)
    if card.guidance is not Guidance.CLASSIFIER_FREE:
        if negative:
            raise InvalidInputError(f"the model {term.model!r} has no guidance to lead away by", field=said)
        if isinstance(expression, Product):
            detail = f"the model {term.model!r} has no unconditional density to take a product over"
            raise InvalidInputError(detail, field=(*where, "model"))
    if card.guidance is Guidance.NONE and params.guidance_scale != 1:
        detail = f"the model {term.model!r} knows no guidance: guidance_scale must be 1, got {params.guidance_scale:g}"
        raise InvalidInputError(detail, field=("guidance_scale",))
    for name, _ in term.adapters:
        if name not in card.adapters:
            told = f"it has {', '.join(card.adapters)}" if card.adapters else "it has none"
            raise InvalidInputError(f"the model {term.model!r} has no LoRA {name!r}; {told}", field=(*where, "lora"))


def sample_shape(expression: Expression, params: SamplingParams, models: Mapping[str, Model]) -> Shape:
    """The shape of one sample of a request: every model must have the size; the first one's is the default."""
    width, height = picture_size(expression, params, models)
    shapes = {leaf.model: models[leaf.model].sample_shape(width, height) for leaf in leaves(expression)}
    if len(set(shapes.values())) > 1:
        raise IncompatibleModelsError({name: f"samples of shape {shape}" for name, shape in shapes.items()})
    return next(iter(shapes.values()))


def picture_size(expression: Expression, params: SamplingParams, models: Mapping[str, Model]) -> tuple[int, int]:
    """(width, height) of a request's pictures, in pixels."""
    card = models[leaves(expression)[0].model].card
    return (
        card.width if params.width is None else params.width,
        card.height if params.height is None else params.height,
    )


class NoiseSource:
    """The noise of a request's images: one CPU generator an image, float32, so that the same seed draws the same on
    every device and in every company.
    """

    def __init__(self, params: SamplingParams, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._generators = [torch.Generator().manual_seed(image_seed(params.seed, i)) for i in range(params.num_images)]

    def draw(self) -> Tensor:
        """The next (B, …) standard normal numbers, on the CPU."""
        noise = torch.empty(len(self._generators), *self._shape, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            # In place: nothing here that torch would share among threads (service.services.Services.load says why).
            torch.randn(self._shape, generator=generator, out=row)
        return noise


def prepare(
    expression: Expression,
    params: SamplingParams,
    models: Mapping[str, Model],
    noise: Tensor,
    encode: Callable[[Row], Condition] | None = None,
    canvas: Canvas | None = None,
) -> SamplerState:
    """The state before the first step.

    Args:
        expression: What to compose.
        params: How.
        models: The loaded models by name; those that the expression names must have passed :func:`check`.
        noise: (B, …) the first draw.
        encode: Gives the condition of a row; for a cache in between. The default asks the row's model.
        canvas: The known picture, for image-to-image, inpainting and densities.
    """
    layout, branches = lay_out(expression, params, models)
    rule = rule_of(expression, branches, params, len(noise))
    schedule = make_schedule(params, [models[leaf.model] for leaf in leaves(expression)], noise.shape[1:])
    sigma_max = float(schedule.sigmas[0])
    device = models[layout.rows[0].model].device
    zeros = torch.zeros(len(noise), rule.components, dtype=torch.float64, device=device)
    z = begin(noise.to(device), sigma_max, canvas, params.strength)
    # log N(z_T; 0, σ_max² I): at σ_max every component is about this one Gaussian. Sampling that begins from a picture
    # at a lower level knows of its densities there only that it was one point for all: it counts from the noise.
    seen = z.cpu().double() / max(sigma_max, _TINY) if canvas is not None and canvas.retrace else noise.double()
    start = -seen.square().flatten(1).sum(1) / 2
    start -= noise[0].numel() * (math.log(2 * math.pi) / 2 + math.log(max(sigma_max, _TINY)))
    return SamplerState(
        z=z,
        log_q=start.unsqueeze(1).expand(-1, rule.components).to(device),
        weights=zeros,
        weight_sum=zeros,
        clamped=zeros[:, 0],
        index=0,
        schedule=schedule,
        layout=layout,
        conditions=tuple(
            _whole_condition(row, (encode or _encoder(models))(row), models[row.model], params, canvas, noise.shape[1:])
            for row in layout.rows
        ),
        rule=rule.to(device),
        lifted=isinstance(expression, And),
        canvas=canvas,
    )


def _encoder(models: Mapping[str, Model]) -> Callable[[Row], Condition]:
    return lambda row: models[row.model].encode_prompts([row.text], dict(row.adapters))


def _whole_condition(
    row: Row, text: Condition, model: Model, params: SamplingParams, canvas: Canvas | None, shape: Shape
) -> Condition:
    """A row's condition with what is not of its text: the scale of distilled guidance, the picture painted on."""
    whole = dict(text)
    if model.card.guidance is Guidance.DISTILLED:
        whole["guidance"] = torch.tensor([params.guidance_scale], dtype=torch.float32, device=model.device)
    if model.card.paints:
        given = canvas.conditions.get(row.model) if canvas is not None else None
        whole |= model.painted(shape) if given is None else given
    return whole


@torch.inference_mode()
def evaluate(
    states: Sequence[SamplerState], models: Mapping[str, Model], forward_rows: Mapping[str, int] | None = None
) -> list[Tensor]:
    """x̂0 of every row of every state: one forward per model (and per length of text, where texts are long).

    Args:
        states: Not done, of one sample shape, on one device.
        models: The loaded models by name.
        forward_rows: How many rows one forward of a model may take, by its name; more are split over several. Models
            that it does not name have no bound.

    Returns:
        For each state (B, M + P, …): its components, then its unconditional branches.
    """
    answers: list[list[Tensor]] = [[state.z] * len(state.layout.rows) for state in states]
    asked: dict[tuple[str, Hashable], list[tuple[int, int]]] = {}
    for i, state in enumerate(states):
        for j, row in enumerate(state.layout.rows):
            asked.setdefault((row.model, _shapes(state.conditions[j])), []).append((i, j))
    for (name, _), places in asked.items():
        sizes = [len(states[i].z) for i, _ in places]
        z = torch.cat([states[i].z for i, _ in places])
        levels = [float(states[i].schedule.sigmas[states[i].index]) for i, _ in places]
        sigma = torch.tensor(levels, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
        condition = collate([(states[i].conditions[j], size) for (i, j), size in zip(places, sizes, strict=True)])
        # A model computes where it lies; the samples lie with the first model of their expression.
        device = models[name].device
        rows = (forward_rows or {}).get(name, len(z))
        computed = _forward(models[name], z.to(device), sigma.to(device), condition, rows)
        outputs = computed.to(z.device).split(sizes)
        for (i, j), output in zip(places, outputs, strict=True):
            answers[i][j] = output
    return [
        torch.stack([rows[slot] for slot in state.layout.slots], dim=1)
        for state, rows in zip(states, answers, strict=True)
    ]


def _forward(model: Model, z: Tensor, sigma: Tensor, condition: Condition, rows: int) -> Tensor:
    """``model.denoised`` in forwards of at most ``rows`` rows, as equal in size as can be."""
    if len(z) <= rows:
        return model.denoised(z, sigma, condition)
    parts = -(-len(z) // rows)
    split = {key: value.chunk(parts) for key, value in condition.items()}
    return torch.cat(
        [
            model.denoised(x, level, {key: chunks[k] for key, chunks in split.items()})
            for k, (x, level) in enumerate(zip(z.chunk(parts), sigma.chunk(parts), strict=True))
        ]
    )


def _shapes(condition: Condition) -> Hashable:
    """What rows must share to stand in one batch."""
    return tuple((key, value.shape[1:]) for key, value in condition.items())


def collate(conditions: Sequence[tuple[Condition, int]]) -> Condition:
    """One condition out of single rows, each repeated as often as its number says."""
    keys = conditions[0][0].keys()
    return {key: torch.cat([c[key].expand(n, *c[key].shape[1:]) for c, n in conditions]) for key in keys}


@torch.inference_mode()
def step(states: Sequence[SamplerState], denoised: Sequence[Tensor], noise: Sequence[Tensor]) -> list[SamplerState]:
    """The states one step further; pure, one batched superposition for all.

    Args:
        states: Not done, of one sample shape, on one device.
        denoised: What :func:`evaluate` gave for them.
        noise: For each state (B, …) standard normal numbers.
    """
    sizes = [len(state.z) for state in states]
    device = states[0].z.device
    inputs = [_on_canvas(*parts) for parts in zip(states, denoised, noise, strict=True)]
    rule = Rule.join([_rule_now(state) for state in states])
    m, p = rule.components, rule.unconditionals
    course = torch.tensor([state.schedule.at(state.index) for state in states], dtype=torch.float64)
    sigma, h, v = course.repeat_interleave(torch.tensor(sizes), dim=0).to(device).unbind(1)
    taken = superpose(
        torch.cat([state.z for state in states]),
        torch.cat([functional.pad(state.log_q, (0, m - state.log_q.shape[1])) for state in states]),
        torch.cat([_widened(d, state.rule, m, p) for (d, _), state in zip(inputs, states, strict=True)]),
        torch.cat([n.to(device, non_blocking=True) for _, n in inputs]).to(states[0].z),
        sigma,
        h,
        v,
        rule,
    )
    return [
        _moved(state, Step(*parts))
        for state, *parts in zip(states, *(part.split(sizes) for part in taken), strict=True)
    ]


def _on_canvas(state: SamplerState, denoised: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The estimates and the noise of a step as the state's canvas has them."""
    canvas = state.canvas
    if canvas is None:
        return denoised, noise
    sigma, h, v = state.schedule.at(state.index)
    noise = noise.to(state.z)
    if v == 0:
        return keep(canvas, denoised, noise, 0.0)
    kept_v = known_variance(sigma, float(state.schedule.sigmas[state.index + 1]), h)
    if canvas.retrace:
        return denoised, retraced(canvas, state.z, denoised, noise, (sigma, h, v), kept_v)
    return keep(canvas, denoised, noise, math.sqrt(kept_v / v))


def _rule_now(state: SamplerState) -> Rule:
    """The state's rule for its next step: of AND's lifts, this step's share."""
    if not state.lifted:
        return state.rule
    return replace(state.rule, numbers=state.rule.numbers * float(state.schedule.lift_share[state.index]))


def _moved(state: SamplerState, taken: Step) -> SamplerState:
    """The state after its own part of a batched step."""
    width = state.rule.components
    weights = taken.weights[:, :width]
    return replace(
        state,
        z=taken.z,
        log_q=taken.log_q[:, :width],
        weights=weights,
        weight_sum=state.weight_sum + weights,
        clamped=state.clamped + taken.clamped,
        index=state.index + 1,
    )


def _widened(denoised: Tensor, rule: Rule, components: int, unconditionals: int) -> Tensor:
    """(B, M + P, …) with the components padded to ``components`` and the branches to ``unconditionals``."""
    own = rule.components
    missing = components - own, unconditionals - rule.unconditionals
    if missing == (0, 0):
        return denoised
    filler = denoised[:, :1]
    parts = [denoised[:, :own], filler.expand(-1, missing[0], *filler.shape[2:])]
    parts += [denoised[:, own:], filler.expand(-1, missing[1], *filler.shape[2:])]
    return torch.cat(parts, dim=1)


def estimate(before: SamplerState, after: SamplerState, noise: Tensor) -> Tensor:
    """The denoised estimate that a step followed: (B, …), what the sample would be if sampling ended with it.

    The step was d = (h/σ²)(x̂0 − z) + √v ξ, so x̂0 = z + (σ²/h)(d − √v ξ).
    """
    sigma, h, v = before.schedule.at(before.index)
    _, noise = _on_canvas(before, before.z.unsqueeze(1), noise)
    moved = after.z - before.z - math.sqrt(v) * noise.to(before.z)
    return before.z + sigma**2 / h * moved


@dataclass(frozen=True, slots=True)
class Samples:
    """What came out; B images with M components.

    Attributes:
        z: (B, …) clean samples.
        log_density: (B, M) float64, log q_i of each image at the grid's smallest σ, in nats; NaN where no step added
            noise (the deterministic kernel, or a single step), since nothing was estimated then.
        mean_weights: (B, M) float64, the mean κ over all steps.
        clamp_rate: (B,) float64, the share of steps at which AND's weights were held back.
    """

    z: Tensor
    log_density: Tensor
    mean_weights: Tensor
    clamp_rate: Tensor


Progress = Callable[[SamplerState], None]


def finish(state: SamplerState) -> Samples:
    """The outcome of a state that is done; :class:`NonFiniteError` where it left the finite numbers."""
    if not bool(torch.isfinite(state.z).all()):
        detail = "the sample overflowed; a lower guidance scale, smaller weights or more steps may help"
        raise NonFiniteError(detail)
    return Samples(state.z, state.log_density, state.mean_weights, state.clamped / max(1, state.index))


def sample(
    expression: Expression,
    params: SamplingParams,
    models: Mapping[str, Model],
    progress: Progress | None = None,
    forward_rows: int | None = None,
    canvas: Canvas | None = None,
) -> Samples:
    """Sample one request from start to end: the plain reference loop.

    Args:
        expression: What to compose.
        params: How.
        models: The loaded models by name.
        progress: Called with the state after every step.
        forward_rows: How many rows one forward may take; None for no bound.
        canvas: The known picture, for image-to-image, inpainting and densities.
    """
    check(expression, params, models, on_canvas=canvas is not None)
    source = NoiseSource(params, sample_shape(expression, params, models))
    bounds = None if forward_rows is None else dict.fromkeys(models, forward_rows)
    state = prepare(expression, params, models, source.draw(), canvas=canvas)
    while not state.done:
        # The last step adds no noise, so none is drawn for it.
        noise = source.draw() if state.index < state.schedule.steps - 1 else torch.zeros_like(state.z)
        (state,) = step([state], evaluate([state], models, bounds), [noise])
        if progress is not None:
            progress(state)
    return finish(state)
