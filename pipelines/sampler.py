"""The sampler: from a plan to samples of its superposition.

:func:`prepare` fixes everything that a request's course depends on; :func:`pipelines.networks.evaluate` asks the
networks, once per model; :func:`step` is pure arithmetic. All three take many requests at once, each at its own
progress; :func:`sample` is the plain loop over one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.canvas import Canvas, begin, keep, known_variance, retraced
from pipelines.card import Guidance, Shape
from pipelines.choice import ChoiceSums
from pipelines.composition import Expression, Path, Prompt, leaves, walk
from pipelines.draws import Draw, NoiseSource, probes
from pipelines.errors import NonFiniteError
from pipelines.lift import LiftSums
from pipelines.mixing import Mixing, Program, evaluate_nodes, node_log_densities
from pipelines.model import Condition, Model
from pipelines.networks import Answer, evaluate
from pipelines.params import SamplingParams
from pipelines.particles import effective_size, pick, resample, survivors
from pipelines.plan import Plan, Row, make_plan
from pipelines.probability_flow import FlowStep, correction, increments
from pipelines.schedule import Schedule, make_schedule
from pipelines.superposition import Course, Flow, Step, cached_rule, superpose

# Nothing is sampled at strength 0, and so nothing is divided by this.
_TINY: Final = 1e-300


@dataclass(frozen=True, slots=True)
class SamplerState:
    """One request on its way: B samples with M leaves and P references, in G groups of particles.

    B is images × candidates × particles, in this order, until the last step; then one particle of each group is left.

    Attributes:
        plan: The request.
        schedule: The course.
        conditions: One condition of one row for each of the plan's rows.
        z: (B, …) samples in variance-exploding coordinates, float32, on the device.
        log_q: (B, M + P) float64, log-densities so far in nats, from log N(z_T; 0, σ_max²) on.
        weights: (B, M) float64, the leaves' coefficients in the last step taken.
        weight_sum: (B, M) float64, their sum over the steps taken.
        clamped: (B,) float64, at how many of them balanced AND's weights were held back.
        log_weights: (B,) float64, the particles' log-weights.
        lineage: (B,) int64, from which of its group's first particles each descends.
        effective: (G,) float64, the effective sample size before the last step's resampling.
        lifts: The lift's running sums; None without references.
        choice: The running sums by which candidates are chosen; None for one candidate.
        followed: (B, …) the denoised estimate that the last step followed: z if sampling ended with it.
        clean: (B, …) the finished samples, while candidates are compared on fresh noise.
        flow: The last step along the probability-flow ODE, until the next network call corrects its increments.
        index: Network calls made.
        canvas: The known picture that is painted on, if there is one.
    """

    plan: Plan
    schedule: Schedule
    conditions: tuple[Condition, ...]
    z: Tensor
    log_q: Tensor
    weights: Tensor
    weight_sum: Tensor
    clamped: Tensor
    log_weights: Tensor
    lineage: Tensor
    effective: Tensor
    lifts: LiftSums | None
    choice: ChoiceSums | None
    followed: Tensor
    clean: Tensor | None = None
    flow: FlowStep | None = None
    index: int = 0
    canvas: Canvas | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        """Whether the last call is made."""
        return self.index == self.schedule.calls

    @property
    def sigma(self) -> float:
        """The noise level of z, for the next network call."""
        return self.schedule.level(self.index)

    @property
    def probe(self) -> Tensor | None:
        """(B, …) the directions along which the next network call differentiates; None off the probability flow."""
        if not self.schedule.flows or self.index >= self.schedule.steps:
            return None
        return probes(self.plan.params, self.plan.shape, self.index).to(self.z)

    @property
    def steps_taken(self) -> int:
        """Reverse steps taken."""
        return min(self.index, self.schedule.steps)

    @property
    def reached(self) -> float:
        """The noise level that sampling has reached."""
        return float(self.schedule.sigmas[self.steps_taken])

    @property
    def draws(self) -> bool:
        """Whether the next step needs randomness: all but the last, which lands on its estimate."""
        return self.index < self.schedule.calls - 1 or self.plan.params.particles > 1

    @property
    def estimates(self) -> Tensor:
        """(B, M + P) log-densities so far in nats; NaN where no step adds noise, since nothing is estimated then."""
        return self.log_q if self.schedule.estimates else torch.full_like(self.log_q, torch.nan)

    @property
    def log_density(self) -> Tensor:
        """(B, M) the same of the leaves."""
        return self.estimates[:, : self.plan.program.leaves]

    @property
    def mean_weights(self) -> Tensor:
        """(B, M) float64, the mean coefficients over the steps taken."""
        return self.weight_sum / max(1, self.steps_taken)

    def take(self, index: Tensor) -> "SamplerState":
        """The state of some samples, by their indices; a sample may be taken several times."""
        return replace(
            self,
            z=self.z[index],
            log_q=self.log_q[index],
            weights=self.weights[index],
            weight_sum=self.weight_sum[index],
            clamped=self.clamped[index],
            log_weights=self.log_weights[index],
            lineage=self.lineage[index],
            lifts=None if self.lifts is None else self.lifts.take(index),
            choice=None if self.choice is None else self.choice.take(index),
            followed=self.followed[index],
            flow=None if self.flow is None else self.flow.take(index),
        )


def prepare(
    plan: Plan,
    models: Mapping[str, Model],
    draw: Draw,
    encode: Callable[[Row], Condition] | None = None,
    canvas: Canvas | None = None,
) -> SamplerState:
    """The state before the first step.

    Args:
        plan: The request.
        models: The loaded models by name.
        draw: The first draw.
        encode: Gives the condition of a row; for a cache in between. The default asks the row's model.
        canvas: The known picture, for image-to-image, inpainting and densities.
    """
    program, params, noise = plan.program, plan.params, draw.normals
    schedule = make_schedule(plan, models)
    sigma_max = float(schedule.sigmas[0])
    device = models[plan.lead].device
    z = begin(noise.to(device), sigma_max, canvas, params.strength)
    # log N(z_T; 0, σ_max² I): at σ_max every component is about this one Gaussian. Sampling that begins from a picture
    # at a lower level knows of its densities there only that it was one point for all: it counts from the noise.
    seen = z.cpu().double() / max(sigma_max, _TINY) if canvas is not None and canvas.retrace else noise.double()
    start = -seen.square().flatten(1).sum(1) / 2
    start -= noise[0].numel() * (math.log(2 * math.pi) / 2 + math.log(max(sigma_max, _TINY)))
    zeros = torch.zeros(len(noise), program.leaves, dtype=torch.float64, device=device)
    groups = torch.full((len(noise) // params.particles,), float(params.particles), dtype=torch.float64, device=device)
    given = encode or (lambda row: models[row.model].encode_prompts([row.text], dict(row.adapters)))
    return SamplerState(
        plan=plan,
        schedule=schedule,
        conditions=tuple(
            _whole_condition(row, given(row), models[row.model], params, canvas, plan.shape) for row in plan.rows
        ),
        z=z,
        log_q=start.unsqueeze(1).expand(-1, program.leaves + program.references).to(device),
        weights=zeros,
        weight_sum=zeros,
        clamped=zeros[:, 0],
        log_weights=zeros[:, 0],
        lineage=torch.arange(params.particles, device=device).repeat(len(groups)),
        effective=groups,
        lifts=LiftSums.zeros(z, program.leaves) if program.branch else None,
        choice=ChoiceSums.zeros(z, program.leaves) if params.candidates > 1 else None,
        followed=z,
        canvas=canvas,
    )


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
def step(states: Sequence[SamplerState], answers: Sequence[Answer], draws: Sequence[Draw]) -> list[SamplerState]:
    """The states one network call further; pure, one batched superposition for all that sample.

    Args:
        states: Not done, of one sample shape, on one device.
        answers: What :func:`pipelines.networks.evaluate` gave for them.
        draws: For each state the randomness of its step.
    """
    inputs = list(zip(states, answers, draws, strict=True))
    sampling = [each for each in inputs if each[0].index < each[0].schedule.steps]
    stepped = iter(_superposed(sampling) if sampling else ())
    return [
        next(stepped) if state.index < state.schedule.steps else _judged(state, answer, draw)
        for state, answer, draw in inputs
    ]


def _superposed(inputs: Sequence[tuple[SamplerState, Answer, Draw]]) -> list[SamplerState]:
    """One reverse step of states that are on their way."""
    inputs = [(_corrected(state, answer), answer, draw) for state, answer, draw in inputs]
    states = [state for state, _, _ in inputs]
    sizes = [len(state.z) for state in states]
    device = states[0].z.device
    painted = [_on_canvas(state, answer, draw.normals) for state, answer, draw in inputs]
    parts = zip(states, sizes, strict=True)
    rule = cached_rule(tuple((s.plan.program, size, s.plan.params.guidance(s.index)) for s, size in parts), device)
    m = rule.leaves
    p = rule.active.shape[1] - m
    course = torch.tensor([state.schedule.at(state.index) for state in states], dtype=torch.float64)
    course = course.repeat_interleave(torch.tensor(sizes), dim=0).to(device)
    taken = superpose(
        torch.cat([state.z for state in states]),
        torch.cat([_widened(state.log_q, state.plan.program, m, p, 0.0) for state in states]),
        torch.cat([_widened(a.predicted, s.plan.program, m, p) for (a, _), s in zip(painted, states, strict=True)]),
        torch.cat([n.to(device, non_blocking=True) for _, n in painted]).to(states[0].z),
        Course(*course.unbind(1)),
        rule,
        _flow(states, [answer for _, answer, _ in inputs], device, m, p),
    )
    each = zip(*(part.split(sizes) for part in taken), strict=True)
    return [
        _flowed(state, _moved(state, Step(*own), painting, draw, m), answer)
        for (state, answer, draw), (painting, _), own in zip(inputs, painted, each, strict=True)
    ]


def _flow(
    states: Sequence[SamplerState], answers: Sequence[Answer], device: torch.device, leaves: int, references: int
) -> Flow | None:
    """Which samples of a batch follow the probability-flow ODE; None where none does."""
    if all(answer.divergence is None for answer in answers):
        return None
    authority, divergence = [], []
    for state, (predicted, known) in zip(states, answers, strict=True):
        own = predicted.new_zeros(predicted.shape[:2], dtype=torch.float64) if known is None else known
        authority.append(state.schedule.flow[state.index].expand(len(own)))
        divergence.append(_widened(own, state.plan.program, leaves, references, 0.0))
    return Flow(torch.cat(authority).to(device), torch.cat(divergence))


def _corrected(state: SamplerState, answer: Answer) -> SamplerState:
    """The log-densities after the last step along the probability flow, now that both of its ends are known."""
    if state.flow is None or answer.divergence is None:
        return state
    gained = correction(state.flow, answer.predicted, answer.divergence, state.sigma)
    return replace(state, log_q=state.log_q + gained, flow=None)


def _flowed(before: SamplerState, after: SamplerState, answer: Answer) -> SamplerState:
    """The densities' increments of a step along the probability flow, by what is known at its beginning."""
    if answer.divergence is None:
        return after
    sigma_t, sigma_s = before.schedule.sigmas[before.index : before.index + 2].tolist()
    if sigma_s == 0:
        return after
    d = after.z - before.z
    gained = increments(d, answer.predicted, answer.divergence, sigma_t, sigma_t, sigma_s)
    return replace(after, log_q=after.log_q + gained, flow=FlowStep(d, sigma_t, gained))


def _on_canvas(state: SamplerState, answer: Answer, noise: Tensor) -> tuple[Answer, Tensor]:
    """The predictions and the noise of a step as the state's canvas has them."""
    canvas, predicted = state.canvas, answer.predicted
    if canvas is None:
        return answer, noise
    sigma, h, v, _ = state.schedule.at(state.index)
    noise = noise.to(state.z)
    if v == 0:
        predicted, noise = keep(canvas, state.z, sigma, predicted, noise, 0.0)
        return answer._replace(predicted=predicted), noise
    kept_v = known_variance(sigma, float(state.schedule.sigmas[state.index + 1]), h)
    if canvas.retrace:
        followed = predicted[:, : state.plan.program.leaves]
        return answer, retraced(canvas, state.z, followed, noise, (sigma, h, v), kept_v)
    predicted, noise = keep(canvas, state.z, sigma, predicted, noise, math.sqrt(kept_v / v))
    return answer._replace(predicted=predicted), noise


def _moved(state: SamplerState, taken: Step, answer: Answer, draw: Draw, width: int) -> SamplerState:
    """The state after its own part of a batched step of ``width`` leaves."""
    program, schedule = state.plan.program, state.schedule
    weights = taken.weights[:, : program.leaves]
    log_q = torch.cat([taken.log_q[:, : program.leaves], taken.log_q[:, width : width + program.references]], dim=1)
    moved = replace(
        _compared(state, answer),
        z=taken.z,
        log_q=log_q,
        weights=weights,
        weight_sum=state.weight_sum + weights,
        clamped=state.clamped + taken.clamped,
        followed=taken.followed,
        index=state.index + 1,
    )
    if state.plan.params.particles > 1:
        moved = _selected(state, moved, taken.log_ratio, draw.uniforms.to(state.z.device))
    if moved.index == schedule.steps and len(schedule.judged):
        # From here on the sums are those of fresh noise over the finished samples.
        lifts, choice = LiftSums.zeros(moved.z, program.leaves), ChoiceSums.zeros(moved.z, program.leaves)
        moved = _noised(replace(moved, lifts=lifts, choice=choice), draw)
    return moved


def _selected(before: SamplerState, after: SamplerState, log_ratio: Tensor, uniforms: Tensor) -> SamplerState:
    """Reweight and resample the particles of a step; after the last one, one of each group is left."""
    count = before.plan.params.particles
    gained = _target(after) - _target(before)
    noisy = before.schedule.at(before.index)[2] > 0
    log_weights = (before.log_weights + gained + log_ratio if noisy else before.log_weights).reshape(-1, count)
    first = torch.arange(len(log_weights), device=log_weights.device) * count
    lineage = before.lineage.reshape(-1, count)
    if after.index == before.schedule.steps:
        left = replace(after, effective=effective_size(log_weights)).take(first + pick(log_weights, uniforms))
        return replace(left, log_weights=torch.zeros_like(left.log_weights), lineage=survivors(lineage))
    ancestors, kept = resample(log_weights, uniforms)
    drawn = replace(after, effective=effective_size(log_weights)).take((first.unsqueeze(1) + ancestors).flatten())
    return replace(drawn, log_weights=kept.flatten())


def _target(state: SamplerState) -> Tensor:
    """The root's log-density, (B,), over leaves as guidance has them: log q_u + w (log q_i − log q_u)."""
    program, log_q, w = state.plan.program, state.log_q, state.plan.params.guidance(state.index)
    own, references = log_q[:, : program.leaves], log_q[:, program.leaves :]
    if program.branch:
        reference = references[:, list(program.branch)]
        log_q = torch.cat([reference + w * (own - reference), references], dim=1)
    columns, _ = evaluate_nodes(_mixing(program, len(log_q), log_q.device), log_q)
    return columns[:, program.tops[0]]


def _mixing(program: Program, samples: int, device: torch.device) -> Mixing:
    return cached_rule(((program, samples, 1.0),), device).mixing


def _compared(state: SamplerState, answer: Answer) -> SamplerState:
    """The state with what a network call tells of lifts and candidates."""
    call = state.z, state.sigma, answer.predicted, state.plan.program.branch
    lifts, choice, schedule = state.lifts, state.choice, state.schedule
    return replace(
        state,
        lifts=None if lifts is None else lifts.add(*call, schedule.lift_weights[state.index]),
        choice=None if choice is None else choice.add(*call, schedule.choice_weights[state.index]),
    )


def _judged(state: SamplerState, answer: Answer, draw: Draw) -> SamplerState:
    """One further estimate on fresh noise over the finished samples."""
    return _noised(replace(_compared(state, answer), index=state.index + 1), draw)


def _noised(state: SamplerState, draw: Draw) -> SamplerState:
    """The finished samples with the noise of the next call over them; as they are where none follows."""
    clean = state.z if state.clean is None else state.clean
    if state.done:
        return replace(state, z=clean)
    noise = draw.normals[:: state.plan.params.particles].to(clean)
    return replace(state, z=clean + state.sigma * noise, clean=clean)


def _widened(values: Tensor, program: Program, leaves: int, references: int, filler: float | None = None) -> Tensor:
    """(B, M + P, …) padded to ``leaves`` and ``references``, with a number or with the first leaf's values."""
    m, p = leaves - program.leaves, references - program.references
    if (m, p) == (0, 0):
        return values
    own, others = values[:, : program.leaves], values[:, program.leaves :]
    if filler is not None:
        return torch.cat([functional.pad(own, (0, m), value=filler), functional.pad(others, (0, p), value=filler)], 1)
    first = values[:, :1]
    return torch.cat([own, first.expand(-1, m, *first.shape[2:]), others, first.expand(-1, p, *first.shape[2:])], 1)


@dataclass(frozen=True, slots=True)
class Samples:
    """The result: B images with M leaves.

    Attributes:
        z: (B, …) clean samples.
        log_density: (B, M) float64, log q_i of each image at the grid's smallest σ, in nats; NaN where no step added
            noise (the deterministic kernel, or a single step), since nothing was estimated then.
        node_log_density: Where each operator with a log-density is → (B,) float64; NaN likewise.
        mean_weights: (B, M) float64, the mean coefficients over all steps.
        clamp_rate: (B,) float64, the share of steps at which balanced AND's weights were held back.
        lift: (B, M) float64, log q_i − log q_u of each image in nats; NaN where a leaf has no reference.
        lift_maps: (B, M, …) the same, cell by cell; None where no reference was evaluated.
        candidate: (B,) int64, which candidate each image is.
        survivors: (B,) int64, from how many first particles the last ones of its group descend.
    """

    z: Tensor
    log_density: Tensor
    node_log_density: dict[Path, Tensor]
    mean_weights: Tensor
    clamp_rate: Tensor
    lift: Tensor
    lift_maps: Tensor | None
    candidate: Tensor
    survivors: Tensor


Progress = Callable[[SamplerState], None]


def finish(state: SamplerState) -> Samples:
    """The result of a state that is done: of each image's candidates the one that satisfies the expression best.

    Raises:
        NonFiniteError: No candidate of an image has stayed within the finite numbers.
    """
    plan, params = state.plan, state.plan.params
    candidate = torch.zeros(params.num_images, dtype=torch.int64, device=state.z.device)
    if state.choice is not None:
        finite = torch.isfinite(state.z).flatten(1).all(1)
        score = state.choice.score(plan.expression, state.z).masked_fill(~finite, -torch.inf)
        candidate = score.reshape(-1, params.candidates).argmax(1)
        state = state.take(torch.arange(params.num_images, device=candidate.device) * params.candidates + candidate)
    if not bool(torch.isfinite(state.z).all()):
        detail = "the sample overflowed; a lower guidance scale, smaller weights or more steps may help"
        raise NonFiniteError(detail)
    operators = {path for path, node in walk(plan.expression) if not isinstance(node, Prompt)}
    nodes = node_log_densities(plan.reported, state.estimates)
    lift = torch.full_like(state.weights, torch.nan)
    if state.lifts is not None:
        lift = torch.where(torch.tensor(plan.lifted, device=lift.device), state.lifts.total(state.z), lift)
    return Samples(
        z=state.z,
        log_density=state.log_density,
        node_log_density={path: value for path, value in nodes.items() if path in operators},
        mean_weights=state.mean_weights,
        clamp_rate=state.clamped / max(1, state.steps_taken),
        lift=lift,
        lift_maps=None if state.lifts is None else state.lifts.maps(state.z),
        candidate=candidate,
        survivors=state.lineage if params.particles > 1 else torch.ones_like(candidate),
    )


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
    cards = {leaf.model: models[leaf.model].card for leaf in leaves(expression)}
    retrace = canvas is not None and canvas.retrace
    plan = make_plan(expression, params, cards, on_canvas=canvas is not None, retrace=retrace)
    source = NoiseSource(params, plan.shape)
    bounds = None if forward_rows is None else dict.fromkeys(models, forward_rows)
    state = prepare(plan, models, source.draw(), canvas=canvas)
    while not state.done:
        draw = source.draw() if state.draws else Draw.nothing(state.z, len(state.effective))
        (state,) = step([state], evaluate([state], models, bounds), [draw])
        if progress is not None:
            progress(state)
    return finish(state)
