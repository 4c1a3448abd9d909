"""The sampler: from an expression to samples of its superposition.

:func:`prepare` fixes everything that a request's course depends on; :func:`evaluate` asks the networks, once per model;
:func:`step` is pure arithmetic. All three take many requests at once, each at its own progress; :func:`sample` is the
plain loop over one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.composition import And, Average, Expression, Or, Product, Prompt, leaves
from pipelines.errors import IncompatibleModelsError, InvalidInputError, NonFiniteError
from pipelines.kernel import Kernel, transitions
from pipelines.model import Condition, Model
from pipelines.noise import karras_sigmas, linear_sigmas, logarithmic_sigmas
from pipelines.superposition import Operator, Rule, Step, superpose

SEED_LIMIT: Final = 2**53
MAX_STEPS: Final = 1000


class Grid(StrEnum):
    """How the noise levels are spaced."""

    KARRAS = "karras"
    LINEAR = "linear"
    LOGARITHMIC = "logarithmic"


_GRIDS: Final = {Grid.KARRAS: karras_sigmas, Grid.LINEAR: linear_sigmas, Grid.LOGARITHMIC: logarithmic_sigmas}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Attributes:
        steps: N, the number of network calls; 1 to 1000.
        guidance_scale: w of classifier-free guidance; 1 is none.
        seed: In [0, 2**53). Image i is drawn from seed + i, so n images at once equal n single ones.
        num_images: n ≥ 1.
        width: Of the pictures, in pixels; None for the first model's native size.
        height: Likewise.
        kernel: Which transition kernel.
        grid: How the noise levels are spaced.
        negative_prompt: What guidance leads away from; empty for the unconditional branch.
    """

    steps: int = 25
    guidance_scale: float = 4.0
    seed: int = 0
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    kernel: Kernel = Kernel.CALIBRATED
    grid: Grid = Grid.KARRAS
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise InvalidInputError(f"steps must be 1 to {MAX_STEPS}, got {self.steps}", field=("steps",))
        if not 0 <= self.seed < SEED_LIMIT:
            raise InvalidInputError(f"seed must be 0 to {SEED_LIMIT - 1}, got {self.seed}", field=("seed",))
        if self.num_images < 1:
            raise InvalidInputError(f"num_images must be at least 1, got {self.num_images}", field=("num_images",))
        if not math.isfinite(self.guidance_scale):
            detail = f"guidance_scale must be finite, got {self.guidance_scale}"
            raise InvalidInputError(detail, field=("guidance_scale",))


def image_seed(seed: int, index: int) -> int:
    """The seed of image ``index`` of a request: the one with which a request of one image draws the same."""
    return (seed + index) % SEED_LIMIT


@dataclass(frozen=True, slots=True)
class Schedule:
    """A request's course; float64, on the CPU.

    Attributes:
        sigmas: (N + 1,) the grid.
        h: (N,) the kernel's step.
        v: (N,) its variance.
        lift_share: (N,) how much of AND's lifts each step takes; sums to 1, or 0 where no step adds noise.
    """

    sigmas: Tensor
    h: Tensor
    v: Tensor
    lift_share: Tensor

    @property
    def steps(self) -> int:
        """N."""
        return len(self.h)

    def at(self, index: int) -> tuple[float, float, float]:
        """(σ_t, h, v) of a step."""
        return float(self.sigmas[index]), float(self.h[index]), float(self.v[index])

    @property
    def estimates(self) -> bool:
        """Whether any step adds noise, so that densities are estimated at all."""
        return bool((self.v > 0).any())


@dataclass(frozen=True, slots=True)
class Layout:
    """Which networks a request asks, and where the answers go.

    Attributes:
        rows: The distinct (model, text) pairs: what is computed for every image at every step.
        slots: For each of the M components, then of the P unconditional branches, the index of its row.
    """

    rows: tuple[Prompt, ...]
    slots: tuple[int, ...]


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

    @property
    def done(self) -> bool:
        """Whether the last step is taken."""
        return self.index == self.schedule.steps

    @property
    def mean_weights(self) -> Tensor:
        """(B, M) float64, the mean κ over the steps taken."""
        return self.weight_sum / max(1, self.index)


def lay_out(expression: Expression, params: SamplingParams) -> tuple[Layout, list[int]]:
    """The layout of a request, and for each component the index of its unconditional branch (empty without any).

    The branches are those of the components' models under the negative prompt, one a model; they are left out where
    guidance 1 makes them vanish.
    """
    terms = leaves(expression)
    guided = params.guidance_scale != 1 or isinstance(expression, Product)
    models = list(dict.fromkeys(term.model for term in terms)) if guided else []
    branches = [Prompt(params.negative_prompt, model) for model in models]
    rows = tuple(dict.fromkeys([*terms, *branches]))
    layout = Layout(rows, tuple(rows.index(slot) for slot in [*terms, *branches]))
    return layout, [models.index(term.model) for term in terms] if guided else []


def rule_of(expression: Expression, branches: Sequence[int], params: SamplingParams, images: int) -> Rule:
    """The superposition rule of a request, one line an image; AND's numbers are the whole lifts."""
    terms = leaves(expression)
    count = len(terms)
    temperature = 1.0
    numbers: Sequence[float]
    match expression:
        case Or(temperature=t, biases=biases):
            operator, numbers, temperature = Operator.OR, biases or [0.0] * count, t
        case And(lifts=lifts):
            operator, numbers = Operator.AND, lifts or [0.0] * count
        case Average(weights=weights):
            total = sum(weights) if weights else count
            operator, numbers = Operator.AVERAGE, [w / total for w in weights or [1.0] * count]
        case Product(weights=weights):
            operator, numbers = Operator.PRODUCT, weights or [1.0] * count
        case Prompt():
            operator, numbers = Operator.AVERAGE, [1.0]
    width = max(branches, default=-1) + 1
    branch = torch.zeros(count, width, dtype=torch.float64)
    for i, p in enumerate(branches):
        branch[i, p] = 1
    return Rule(
        torch.full((images,), int(operator)),
        torch.ones(images, count, dtype=torch.bool),
        torch.tensor(numbers, dtype=torch.float64).expand(images, -1),
        torch.full((images,), temperature, dtype=torch.float64),
        torch.full((images,), params.guidance_scale, dtype=torch.float64),
        branch.expand(images, -1, -1),
    )


def make_schedule(params: SamplingParams, models: Sequence[Model]) -> Schedule:
    """The grid over the noise levels that all models know, with the mean of their denoising errors.

    Args:
        params: How to sample.
        models: The model of each component: one that carries two components counts twice in the mean.
    """
    low = max(model.card.sigma_min for model in models)
    high = min(model.card.sigma_max for model in models)
    sigmas = _GRIDS[params.grid](params.steps, low, high)
    error = torch.stack([model.card.error(sigmas[:-1]) for model in models]).mean(0)
    h, v = transitions(params.kernel, sigmas, error)
    return Schedule(sigmas, h, v, _lift_share(sigmas[:-1], h, v, error))


def _lift_share(sigma: Tensor, h: Tensor, v: Tensor, error: Tensor) -> Tensor:
    """How to share a lift among the steps: where components differ most against the noise, it costs least.

    A lift L of one step moves the sample by v L/|D|, which the noise makes v L²/(2|D|²) nats unlikely; so the costs'
    sum is least for L ∝ |D|²/v, D = h (x̂0_1 − x̂0_2)/σ². Before sampling, |x̂0_1 − x̂0_2|² is known only in kind: it
    vanishes with what the model does not know yet, m(σ), and with what it knows already, σ_d² − m(σ).
    """
    differing = error * (error.max() - error).clamp(min=0)
    share = torch.where(v > 0, h**2 / (sigma**4 * v.clamp(min=torch.finfo(v.dtype).tiny)) * differing, 0.0)
    noisy = (v > 0).to(v)
    share = torch.where(share.sum() > 0, share, noisy)
    return share / share.sum().clamp(min=torch.finfo(v.dtype).tiny)


def check(expression: Expression, params: SamplingParams, models: Mapping[str, Model]) -> None:
    """Refuse what has no meaning: models without a common data space, prompts that a model cannot read, densities
    without noise, a size that a model does not have.
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
        if term.text and not models[term.model].card.takes_prompts:
            detail = f"the model {term.model!r} takes no prompts; leave it empty"
            raise InvalidInputError(detail, field=("components", i, "prompt"))
        if params.negative_prompt and not models[term.model].card.takes_prompts:
            detail = f"the model {term.model!r} takes no prompts, so there is nothing to lead away from"
            raise InvalidInputError(detail, field=("negative_prompt",))
    if params.kernel is Kernel.DETERMINISTIC and isinstance(expression, Or | And) and len(terms) > 1:
        allowed = ", ".join(kernel for kernel in Kernel if kernel is not Kernel.DETERMINISTIC)
        detail = f"the deterministic kernel has no density to weigh components by; allowed are {allowed}"
        raise InvalidInputError(detail, field=("kernel",))
    sample_shape(expression, params, models)


def sample_shape(expression: Expression, params: SamplingParams, models: Mapping[str, Model]) -> tuple[int, ...]:
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
        return torch.stack([torch.randn(self._shape, generator=g, dtype=torch.float32) for g in self._generators])


def prepare(
    expression: Expression,
    params: SamplingParams,
    models: Mapping[str, Model],
    noise: Tensor,
    encode: Callable[[Prompt], Condition] | None = None,
) -> SamplerState:
    """The state before the first step.

    Args:
        expression: What to compose.
        params: How.
        models: The loaded models by name; those that the expression names must have passed :func:`check`.
        noise: (B, …) the first draw.
        encode: Gives the condition of a row; for a cache in between. The default asks the row's model.
    """
    layout, branches = lay_out(expression, params)
    rule = rule_of(expression, branches, params, len(noise))
    schedule = make_schedule(params, [models[leaf.model] for leaf in leaves(expression)])
    sigma_max = float(schedule.sigmas[0])
    device = models[layout.rows[0].model].device
    zeros = torch.zeros(len(noise), rule.components, dtype=torch.float64, device=device)
    # log N(z_T; 0, σ_max² I): at σ_max every component is this one Gaussian.
    start = -noise.double().square().flatten(1).sum(1) / 2 - noise[0].numel() / 2 * math.log(2 * math.pi * sigma_max**2)
    return SamplerState(
        z=(noise * sigma_max).to(device),
        log_q=start.unsqueeze(1).expand(-1, rule.components).to(device),
        weights=zeros,
        weight_sum=zeros,
        clamped=zeros[:, 0],
        index=0,
        schedule=schedule,
        layout=layout,
        conditions=tuple((encode or _encoder(models))(row) for row in layout.rows),
        rule=rule.to(device),
        lifted=isinstance(expression, And),
    )


def _encoder(models: Mapping[str, Model]) -> Callable[[Prompt], Condition]:
    return lambda row: models[row.model].encode_prompts([row.text])


@torch.inference_mode()
def evaluate(
    states: Sequence[SamplerState], models: Mapping[str, Model], forward_rows: int | None = None
) -> list[Tensor]:
    """x̂0 of every row of every state: one forward per model.

    Args:
        states: Not done, of one sample shape, on one device.
        models: The loaded models by name.
        forward_rows: How many rows one forward may take; more are split over several. None for no bound.

    Returns:
        For each state (B, M + P, …): its components, then its unconditional branches.
    """
    answers: list[list[Tensor]] = [[state.z] * len(state.layout.rows) for state in states]
    asked: dict[str, list[tuple[int, int]]] = {}
    for i, state in enumerate(states):
        for j, row in enumerate(state.layout.rows):
            asked.setdefault(row.model, []).append((i, j))
    for name, places in asked.items():
        sizes = [len(states[i].z) for i, _ in places]
        z = torch.cat([states[i].z for i, _ in places])
        levels = [float(states[i].schedule.sigmas[states[i].index]) for i, _ in places]
        sigma = torch.tensor(levels, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
        condition = collate([(states[i].conditions[j], size) for (i, j), size in zip(places, sizes, strict=True)])
        # A model computes where it lies; the samples lie with the first model of their expression.
        device = models[name].device
        computed = _forward(models[name], z.to(device), sigma.to(device), condition, forward_rows or len(z))
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
    rule = Rule.join([_rule_now(state) for state in states])
    m, p = rule.components, rule.unconditionals
    course = torch.tensor([state.schedule.at(state.index) for state in states], dtype=torch.float64)
    sigma, h, v = course.repeat_interleave(torch.tensor(sizes), dim=0).to(device).unbind(1)
    taken = superpose(
        torch.cat([state.z for state in states]),
        torch.cat([functional.pad(state.log_q, (0, m - state.log_q.shape[1])) for state in states]),
        torch.cat([_widened(d, state.rule, m, p) for d, state in zip(denoised, states, strict=True)]),
        torch.cat([n.to(device, non_blocking=True) for n in noise]).to(states[0].z),
        sigma,
        h,
        v,
        rule,
    )
    return [
        _moved(state, Step(*parts))
        for state, *parts in zip(states, *(part.split(sizes) for part in taken), strict=True)
    ]


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
    log_density = state.log_q if state.schedule.estimates else torch.full_like(state.log_q, torch.nan)
    return Samples(state.z, log_density, state.mean_weights, state.clamped / state.index)


def sample(
    expression: Expression,
    params: SamplingParams,
    models: Mapping[str, Model],
    progress: Progress | None = None,
    forward_rows: int | None = None,
) -> Samples:
    """Sample one request from start to end: the plain reference loop.

    Args:
        expression: What to compose.
        params: How.
        models: The loaded models by name.
        progress: Called with the state after every step.
        forward_rows: How many rows one forward may take; None for no bound.
    """
    check(expression, params, models)
    source = NoiseSource(params, sample_shape(expression, params, models))
    state = prepare(expression, params, models, source.draw())
    while not state.done:
        # The last step adds no noise, so none is drawn for it.
        noise = source.draw() if state.index < state.schedule.steps - 1 else torch.zeros_like(state.z)
        (state,) = step([state], evaluate([state], models, forward_rows), [noise])
        if progress is not None:
            progress(state)
    return finish(state)
