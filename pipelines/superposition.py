r"""One reverse step of a superposition, for a batch of unrelated samples at once.

Notation, per sample of D numbers. From σ_t to σ_s by a kernel (h, v) (:mod:`pipelines.kernel`):

    δ_i = h s_i                              offset of leaf i, s_i = −ε̂_i/σ_t = (x̂0_i − z)/σ_t²
    δ_u(i)                                   offset of the reference branch that leaf i is guided against
    n = √v ξ                                 this step's noise, drawn before the weights because balanced AND needs it
    d = z_s − z_t                            the step taken
    Δlog q_i = log N(d; δ_i, v) − log N(d; 0, h)     the Itô density estimator's increment, in nats

Leaves and references both have an estimated log-density. An expression (:mod:`pipelines.mixing`) turns them into one
row of coefficients c over all offsets, Σ c = 1, and guidance w acts on the leaves in the move:

    d = Σ_i c_i (δ_u(i) + w(δ_i − δ_u(i))) + Σ_p c_p δ_p + n

A balanced AND of terms with offsets δ_j (mixes of the leaves' and references') chooses κ, Σ κ = 1, such that
the ℓ_j of its terms, less the lifts they shall have attained by now, are equal after the step, as far as the increments
are linear in the terms' own (for leaves they are; what an OR node or a cut move leaves over, the next step makes up
for), and moves by

    d = δ_ū + w(Σ κ_j δ_j − δ_ū) + n

where δ_ū is the mean over its terms of their mixes with every leaf replaced by its reference. Across models every
other operator guides each leaf by its own model, while balanced AND needs one branch for all: its noisy weights would
move the sample along the difference of the unconditional fields, which they do not control.

Everything is computed from the Gram matrix of the rows C_i = δ_i − m, U_p = δ_p − m, n and m = mean δ_i. Taking
differences of the networks' own predictions first keeps float32 rows exact where it matters: components agree to many
digits at high noise. The Gram matrix and its algebra run in float64; d is one combination of the rows.

References:
    The Superposition of Diffusion Models Using the Itô Density Estimator (Skreta et al., ICLR 2025),
    https://arxiv.org/abs/2412.17762, Theorem 1 and Propositions 5 and 6. Balanced AND for more than two terms, with
    lifts, is derived in docs/composition.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from pipelines.mixing import Mixing, Program, evaluate_nodes, unfold

# Relative to the Gram matrix: small enough for two refinements to undo wherever components differ at all, large enough
# to hold float64's rounding down where they do not.
_RIDGE: Final = 1e-9
# Components that differ by fewer units in the last place of the offsets are one component: what is left between them is
# the rounding of a float32 network, which depends on the company in its batch, and weights must not follow it.
_ULPS: Final = 100
_REFINEMENTS: Final = 2
# How far balanced AND may move to balance, in multiples of what the step spans: the components' differences, the
# guidance, and one standard deviation of the noise for each component.
_REACH: Final = 5.0
# How far a lift may move the sample in one step, in standard deviations of the noise, and how unlikely the move may be,
# in nats for each nat gained: a lift between components that hardly differ must not drive the sample out of both.
_LIFT_REACH: Final = 4.0
_LIFT_COST: Final = 4.0
# A balance or a lift counts as given up where this share of it cannot be had.
_LOST: Final = 1e-3
# Fewer nats are rounding.
_NEGLIGIBLE: Final = 1e-3
# Batches of jobs change only when a job comes or goes.
_CACHED_RULES: Final = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """What each of B samples does, padded to M leaves, P references and C tops.

    Attributes:
        any_balanced: Whether any sample's expression is a balanced AND; known on the host.
        mixing: The expressions.
        active: (B, M + P) bool, False where a column is padding.
        branch: (B, M, P) float64, one-hot: the reference of each leaf. Without any (P = 0 or a zero line) the guidance
            must be 1.
        guidance: (B,) float64, w.
        balanced: (B,) bool, whether the tops are the terms of a balanced AND.
        terms: (B, C) bool, False where a top is padding.
        lifts: (B, C) float64, the whole lifts of a balanced AND, in nats.
    """

    any_balanced: bool
    mixing: Mixing
    active: Tensor
    branch: Tensor
    guidance: Tensor
    balanced: Tensor
    terms: Tensor
    lifts: Tensor

    @property
    def leaves(self) -> int:
        """M, the width in leaves."""
        return self.branch.shape[1]

    @classmethod
    def join(cls, parts: Sequence[tuple[Program, int, float]], device: torch.device | str = "cpu") -> Self:
        """The rules of a batch.

        Args:
            parts: Programs, each with its number of samples and its guidance scale.
            device: Where the tensors go.
        """
        m = max(program.leaves for program, _, _ in parts)
        p = max(program.references for program, _, _ in parts)
        c = max(len(program.tops) for program, _, _ in parts)
        count = len(parts)
        active, branch = np.zeros((count, m + p), bool), np.zeros((count, m, p))
        terms, lifts = np.zeros((count, c), bool), np.zeros((count, c))
        for k, (program, _, _) in enumerate(parts):
            active[k, : program.leaves] = active[k, m : m + program.references] = True
            branch[k, range(len(program.branch)), program.branch] = 1
            terms[k, : len(program.tops)], lifts[k, : len(program.tops)] = True, program.lifts
        guidance = np.array([guidance for _, _, guidance in parts])
        balanced = np.array([program.balanced for program, _, _ in parts])
        samples = [samples for _, samples, _ in parts]
        mixing = Mixing.join([(program, samples) for program, samples, _ in parts], device)
        arrays = (active, branch, guidance, balanced, terms, lifts)
        tensors = [torch.from_numpy(np.repeat(array, samples, axis=0)).to(device) for array in arrays]
        return cls(bool(balanced.any()), mixing, *tensors)


@lru_cache(maxsize=_CACHED_RULES)
def cached_rule(parts: tuple[tuple[Program, int, float], ...], device: torch.device) -> Rule:
    """:meth:`Rule.join`, remembered: a batch takes many steps between two jobs that come or go."""
    return Rule.join(parts, device)


class Course(NamedTuple):
    """One step of each of B samples' schedules; (B,) float64 each.

    Attributes:
        sigma: σ_t.
        h: The kernel's step.
        v: The kernel's variance; at v = 0 the densities do not change here and balanced AND's weights are those of a
            vanishing noise.
        lifted: The share of a balanced AND's lifts that shall be attained after this step.
    """

    sigma: Tensor
    h: Tensor
    v: Tensor
    lifted: Tensor


class Flow(NamedTuple):
    """The samples of a batch that follow the probability-flow ODE (:mod:`pipelines.probability_flow`).

    Attributes:
        authority: (B,) float64, σ_s²(σ_t − σ_s)/σ_t: it stands in for v, because Δlog q_i changes by <d, δ_i>/authority
            with the step d; 0 for samples that do not follow it, and at the last step.
        divergence: (B, M + P) float64, div ε̂; anything where the authority is 0.
    """

    authority: Tensor
    divergence: Tensor


class Step(NamedTuple):
    """The outcome of one step.

    Attributes:
        z: (B, …) the new samples.
        log_q: (B, M + P) float64, the log-densities after the step, in nats; padding stays 0.
        weights: (B, M) float64, the leaves' coefficients c; padding is 0.
        clamped: (B,) bool, whether balanced AND's weights were held back.
        log_ratio: (B,) float64, log N(d; 0, h) − log N(d; δ̃, v), with δ̃ the mean of the move: what importance weights
            of particles need of the proposal (:mod:`pipelines.particles`); 0 where v = 0.
        followed: (B, …) the denoised estimate that the step followed: z if sampling ended with it.
    """

    z: Tensor
    log_q: Tensor
    weights: Tensor
    clamped: Tensor
    log_ratio: Tensor
    followed: Tensor


def superpose(
    z: Tensor,
    log_q: Tensor,
    predicted: Tensor,
    noise: Tensor,
    course: Course,
    rule: Rule,
    flow: Flow | None = None,
) -> Step:
    """Take one reverse step of every sample. No value is read back to the host.

    Args:
        z: (B, …) samples in variance-exploding coordinates, float32 or float64.
        log_q: (B, M + P) float64, log-densities of leaves and references so far.
        predicted: (B, M + P, …) ε̂ of the leaves, then of the references; finite also in padding.
        noise: (B, …) ξ, standard normal; ignored where v = 0.
        course: Where each sample is in its schedule.
        rule: What each sample does.
        flow: Which samples follow the probability-flow ODE; None where none does.

    Returns:
        The step taken. On the probability-flow ODE its log-densities are those before it: their increments are
        :func:`pipelines.probability_flow.increments`.
    """
    batch, m = len(z), rule.leaves
    flat = z.reshape(batch, -1)
    sigma, h, v, _ = course
    active = rule.active.to(flat)
    predicted = predicted.reshape(batch, predicted.shape[1], -1)
    centre = (predicted[:, :m] * active[:, :m, None]).sum(1, keepdim=True) / active[:, :m].sum(1)[:, None, None]
    scale = -(h / sigma).to(flat)[:, None, None]
    mean, differences = scale * centre, scale * active.unsqueeze(-1) * (predicted - centre)
    noise = noise.reshape(batch, 1, -1) * v.sqrt().to(flat)[:, None, None]
    # The products are summed in float64: what float32 sums lose would outweigh small differences between components.
    exact = torch.cat([differences, noise, mean], dim=1).double()
    gram = exact @ exact.mT
    columns, mixes = evaluate_nodes(rule.mixing, log_q)
    tops = unfold(rule.mixing, mixes)
    row, base, clamped = tops[:, 0], _referred(tops[:, 0], rule), torch.zeros_like(rule.balanced)
    if rule.any_balanced:
        epsilon = torch.finfo(flat.dtype).eps
        attained = torch.einsum("bcn,bn->bc", rule.mixing.tops, columns)
        missing = course.lifted.unsqueeze(1) * rule.lifts - attained
        kappa, common, held = _balanced(gram, tops, missing, course, rule, epsilon, flow)
        pick = rule.balanced.unsqueeze(1)
        row = torch.where(pick, torch.einsum("bc,bck->bk", kappa, tops), row)
        base, clamped = torch.where(pick, common, base), held & rule.balanced
    guidance = rule.guidance.unsqueeze(1)
    coefficients = guidance * row + (1 - guidance) * base
    increments, log_ratio = _increments(gram, coefficients, course, rule, flat.shape[1])
    drift = (torch.bmm(coefficients.to(flat).unsqueeze(1), differences) + mean).squeeze(1)
    followed = flat + drift * (sigma**2 / h).to(flat).unsqueeze(1)
    moved = flat + drift + noise.squeeze(1)
    weights = row[:, :m] * rule.active[:, :m]
    return Step(moved.reshape(z.shape), log_q + increments, weights, clamped, log_ratio, followed.reshape(z.shape))


def _referred(row: Tensor, rule: Rule) -> Tensor:
    """A mix (…, M + P) with each leaf's coefficient moved to the leaf's reference."""
    m = rule.leaves
    moved = row[..., m:] + torch.einsum("b...m,bmp->b...p", row[..., :m], rule.branch)
    return torch.cat([torch.zeros_like(row[..., :m]), moved], dim=-1)


def _balanced(
    gram: Tensor, tops: Tensor, missing: Tensor, course: Course, rule: Rule, epsilon: float, flow: Flow | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Balanced AND's κ = 1/C + x: the least x with Σ x = 0 that equalises the increments less what is missing.

    Here C_j = δ_j − m̄ are the offsets of the terms less their mean. With d = m̄ + (1 − w) Ū + w Σ_j x_j C_j + n, the
    condition <d − m̄, C_i> = |C_i|²/2 + v L_i + const reads w G x = P r for G = C Cᵀ, P the centring,
    r_i = |C_i|²/2 + v L_i + (w − 1) <Ū, C_i> − <n, C_i>. G is singular along 1 (the C_i sum to zero) and wherever terms
    coincide. A ridge picks the least solution there, so that equal terms get equal weights; iterated, its bias
    elsewhere falls to (ridge/eigenvalue)³. ``epsilon`` is the relative precision of the rows in the Gram matrix.

    Three or more terms that lie almost on a line have no point at equal distance but far away, and a lift between terms
    that hardly differ needs a long way too. There the move w Σ x_j C_j is cut to a multiple of what the step spans, and
    the increments are no longer equal. Between terms that do not differ, or by rounding alone, balance and lift are
    given up: they share a weight.

    What is missing, L (B, C) up to a common number, is the lift that a term should have after this step less its
    log-density before it: what was cut, and what the increments of nodes left over, is asked for again. On the
    probability-flow ODE another term takes the place of |C_i|²/2, and the authority that of v.

    Returns:
        κ, (B, C); the coefficients of δ_ū, (B, M + P); whether κ was held back, (B,).
    """
    width = tops.shape[2]
    equal = rule.terms.double() / rule.terms.sum(1, keepdim=True)
    centre = torch.einsum("bc,bck->bk", equal, tops)
    common = torch.einsum("bc,bck->bk", equal, _referred(tops, rule))
    shifted = (tops - centre.unsqueeze(1)) * rule.terms.unsqueeze(2)
    across = torch.bmm(shifted, gram[:, :width, :width])
    inner = torch.bmm(across, shifted.mT)
    away = common - centre
    unconditional = torch.einsum("bck,bk->bc", across, away)
    squares = inner.diagonal(dim1=1, dim2=2)
    guidance, v, half = rule.guidance, course.v, squares / 2
    if flow is not None:
        follows = flow.authority > 0
        v = torch.where(follows, flow.authority, v)
        half = torch.where(follows.unsqueeze(1), _flow_half(gram, shifted, across, centre, course, flow), half)
    noise = torch.einsum("bck,bk->bc", shifted, gram[:, :width, width])
    wanted = half + (guidance.unsqueeze(1) - 1) * unconditional - noise
    trace = squares.sum(1)
    ridge = _RIDGE * trace + (_ULPS * epsilon) ** 2 * gram[:, -1, -1] + torch.finfo(gram.dtype).tiny
    along_ones = (trace + ridge)[:, None, None] * equal.unsqueeze(2) * rule.terms.unsqueeze(1)
    diagonal = torch.where(rule.terms, ridge.unsqueeze(1), 1.0)
    system = inner + along_ones
    factor, _ = torch.linalg.cholesky_ex(system + torch.diag_embed(diagonal))

    def centred(values: Tensor) -> Tensor:
        return ((values - (values * equal).sum(1, keepdim=True)) * rule.terms).unsqueeze(2)

    # Two columns, w x of the balance and w x of the lift: each is a move Σ_j (w x_j) C_j with a reach of its own.
    asked = torch.cat([centred(wanted), centred(v.unsqueeze(1) * missing)], dim=2)
    # The part that lies where terms differ, G (G + ridge)⁻¹ r, refined once: the rest cannot be had.
    target = inner @ torch.cholesky_solve(asked, factor)
    target = target + inner @ torch.cholesky_solve(asked - target, factor)
    least = torch.maximum(_LOST**2 * asked.square().sum(1), (_NEGLIGIBLE * v.unsqueeze(1)) ** 2)
    lost = ((asked - target).square().sum(1) > least).any(1)
    solution = torch.cholesky_solve(target, factor)
    for _ in range(_REFINEMENTS):
        solution = solution + torch.cholesky_solve(target - system @ solution, factor)
    held = target[:, :, 1:]
    # In float32 the C_i sum to zero only up to rounding, and along 1 the system tells nothing else.
    solution = solution - solution.sum(1, keepdim=True) * equal.unsqueeze(2)
    moves = torch.einsum("bik,bij,bjk->bk", solution, inner, solution)
    branch = torch.einsum("bp,bpq,bq->b", away, gram[:, :width, :width], away)
    span = guidance**2 * trace + (1 - guidance) ** 2 * branch + v * rule.terms.sum(1)
    # A move of m costs m²/2v nats and a part s of it gains s L: so s m² ≤ 2 cost (v L).
    worth = (2 * _LIFT_COST * (held.amax(1) - held.amin(1)).squeeze(1)) ** 2
    affordable = worth / moves[:, 1].clamp(min=torch.finfo(moves.dtype).tiny)
    reach = torch.stack([_REACH**2 * span, torch.minimum(_LIFT_REACH**2 * v, affordable)], dim=1)
    too_far = moves > reach
    shrink = torch.where(too_far, (reach / moves.clamp(min=torch.finfo(moves.dtype).tiny)).sqrt(), 1.0)
    # Guidance 0 follows the reference whatever κ is: no weights can balance it, so they stay equal.
    steers = guidance != 0
    scale = torch.where(steers.unsqueeze(1), shrink / torch.where(steers, guidance, 1.0).unsqueeze(1), 0.0)
    return equal + torch.einsum("bmk,bk->bm", solution, scale), common, too_far.any(1) | lost


def _flow_half(gram: Tensor, shifted: Tensor, across: Tensor, centre: Tensor, course: Course, flow: Flow) -> Tensor:
    """What |C_j|²/2 is to Itô's increments on the probability-flow ODE, (B, C).

    There Δlog q_i = (<d, δ_i> − (1 + σ_s/σ_t)|δ_i|²/2)/a + σ_t div ε̂_i log(σ_t/σ_s) + a number common to all, with the
    authority a. So equal increments of terms Σ_i T_ji (leaf i) need <d − m̄, C_j> = Σ_i T_ji q_i − <m̄, C_j> + const with
    q_i = (1 + σ_s/σ_t)|δ_i|²/2 − a σ_t div ε̂_i log(σ_t/σ_s).
    """
    width = shifted.shape[2]
    # σ_s/σ_t of a step h = σ_t(σ_t − σ_s); |δ_i|² less |m|², which is common to all.
    ratio = torch.where(flow.authority > 0, 1 - course.h / course.sigma**2, 1.0).unsqueeze(1)
    squares = gram[:, :width, :width].diagonal(dim1=1, dim2=2) + 2 * gram[:, :width, -1]
    spread = (flow.authority * course.sigma).unsqueeze(1) * flow.divergence * ratio.log()
    mean = torch.einsum("bck,bk->bc", shifted, gram[:, :width, -1]) + torch.einsum("bck,bk->bc", across, centre)
    return torch.einsum("bck,bk->bc", shifted, (1 + ratio) * squares / 2 + spread) - mean


def _increments(
    gram: Tensor, coefficients: Tensor, course: Course, rule: Rule, dimension: int
) -> tuple[Tensor, Tensor]:
    """Δlog q_i = −|d − δ_i|²/2v + |d|²/2h + (D/2) log(h/v), (B, M + P), and the log ratio, (B,).

    Both are 0 where v = 0; the increments are 0 in padding too.
    """
    width = coefficients.shape[1]
    # e = d − m, in the rows' coordinates without the last row: the coefficients of differences, then of the noise.
    e = torch.cat([coefficients, coefficients.new_ones(len(gram), 1)], dim=1)
    products = torch.einsum("bk,bkl->bl", e, gram[:, :-1])
    e_squared = (products[:, :-1] * e).sum(1, keepdim=True)
    d_squared = e_squared + 2 * products[:, -1:] + gram[:, -1:, -1]
    distances = e_squared - 2 * products[:, :width] + gram[:, :width, :width].diagonal(dim1=1, dim2=2)
    noisy = (course.v > 0).unsqueeze(1)
    h, v = course.h.unsqueeze(1), torch.where(noisy, course.v.unsqueeze(1), 1.0)
    forward = d_squared / (2 * h) + dimension / 2 * (h / v).log()
    increments = torch.where(noisy & rule.active, forward - distances / (2 * v), 0.0)
    log_ratio = torch.where(noisy, gram[:, width : width + 1, width] / (2 * v) - forward, 0.0)
    return increments, log_ratio.squeeze(1)
