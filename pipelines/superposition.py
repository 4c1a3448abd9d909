r"""One reverse step of a superposition, for a batch of unrelated samples at once.

Notation, per sample of D numbers. From σ_t to σ_s by a kernel (h, v) (:mod:`pipelines.kernel`):

    δ_i = h s_i                              offset of component i, s_i = (x̂0_i − z)/σ_t²
    δ_u(i)                                   offset of the unconditional branch that component i is guided against
    n = √v ξ                                 this step's noise, drawn before the weights because AND needs it
    d = z_s − z_t                            the step taken
    Δlog q_i = log N(d; δ_i, v) − log N(d; 0, h)     the Itô density estimator's increment, in nats

and the operators choose the weights κ (w is the guidance scale, M the number of components):

    OR        κ = softmax(T log q_i + b_i)                              d = Σ κ_i (δ_u(i) + w(δ_i − δ_u(i))) + n
    AND       κ such that Δlog q_i − L_i is equal for all i, Σ κ = 1    d = δ_ū + w(Σ κ_i δ_i − δ_ū) + n
    AVERAGE   κ given, Σ κ = 1                                          d as OR's
    PRODUCT   κ given                                                   d = δ_ū + w Σ κ_i (δ_i − δ_u(i)) + n

δ_ū is the mean over the components of δ_u(i). With one model all δ_u(i) are one row and the formulas are the paper's;
across models OR guides each component by its own model, while AND needs one branch for all, or its noisy weights would
move the sample along the difference of the unconditional fields, which they do not control.

Everything is computed from the Gram matrix of the rows C_i = δ_i − m, U_p = δ_{u_p} − m, n and m = mean δ_i. Taking
differences first keeps float32 rows exact where it matters: components agree to many digits at high noise. The Gram
matrix and its algebra run in float64; d is one combination of the rows.

References:
    The Superposition of Diffusion Models Using the Itô Density Estimator (Skreta et al., ICLR 2025),
    https://arxiv.org/abs/2412.17762, Theorem 1 and Propositions 5 and 6. AND for M > 2 with lifts is derived in
    docs/composition.md.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

# Relative to the Gram matrix: small enough for two refinements to undo wherever components differ at all, large enough
# to hold float64's rounding down where they do not.
_RIDGE: Final = 1e-9
# Components that differ by fewer units in the last place of the offsets are one component: what is left between them is
# the rounding of a float32 network, which depends on the company in its batch, and weights must not follow it.
_ULPS: Final = 100
_REFINEMENTS: Final = 2
# How far AND may move to balance, in multiples of what the step spans: the components' differences, the guidance, and
# one standard deviation of the noise for each component.
_REACH: Final = 5.0
# How far a lift may move the sample in one step, in standard deviations of the noise: each costs its square's half in
# nats, so that a lift between components that hardly differ cannot drive the sample out of both.
_LIFT_REACH: Final = 1.5
# A lift counts as given up where this share of it cannot be had.
_LOST_LIFT: Final = 1e-3


class Operator(IntEnum):
    """How the weights are chosen."""

    OR = 0
    AND = 1
    AVERAGE = 2
    PRODUCT = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """What each of B samples does, padded to M components and P unconditional rows.

    Attributes:
        operator: (B,) int64, of :class:`Operator`.
        active: (B, M) bool, False where a column is padding.
        numbers: (B, M) float64: OR's bias b_i, AND's lift L_i of one step, the weights of AVERAGE and PRODUCT.
        temperature: (B,) float64, OR's T.
        guidance: (B,) float64, w.
        branch: (B, M, P) float64, one-hot: which unconditional row component i is guided against. Without any (P = 0
            or a zero line) the guidance must be 1 and the operator not PRODUCT.
    """

    operator: Tensor
    active: Tensor
    numbers: Tensor
    temperature: Tensor
    guidance: Tensor
    branch: Tensor

    @property
    def components(self) -> int:
        """M, the width in components."""
        return self.active.shape[1]

    @property
    def unconditionals(self) -> int:
        """P, the width in unconditional rows."""
        return self.branch.shape[2]

    def padded(self, components: int, unconditionals: int) -> Self:
        """The same rules in M = ``components`` columns and P = ``unconditionals`` rows."""
        m, p = components - self.components, unconditionals - self.unconditionals
        pad = torch.nn.functional.pad
        return type(self)(
            self.operator,
            pad(self.active, (0, m)),
            pad(self.numbers, (0, m)),
            self.temperature,
            self.guidance,
            pad(self.branch, (0, p, 0, m)),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same rules on a device."""
        return type(self)(*(t.to(device) for t in self.tensors()))

    @classmethod
    def join(cls, rules: "list[Self]") -> Self:
        """One batch out of several, padded to the widest."""
        m, p = max(r.components for r in rules), max(r.unconditionals for r in rules)
        return cls(*(torch.cat(parts) for parts in zip(*(r.padded(m, p).tensors() for r in rules), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        """Every attribute, in order."""
        return self.operator, self.active, self.numbers, self.temperature, self.guidance, self.branch


class Step(NamedTuple):
    """The outcome of one step.

    Attributes:
        z: (B, …) the new samples.
        log_q: (B, M) float64, the log-densities after the step, in nats; padding stays 0.
        weights: (B, M) float64, κ; padding is 0.
        clamped: (B,) bool, whether AND's weights were held back.
    """

    z: Tensor
    log_q: Tensor
    weights: Tensor
    clamped: Tensor


def superpose(
    z: Tensor,
    log_q: Tensor,
    denoised: Tensor,
    noise: Tensor,
    sigma: Tensor,
    h: Tensor,
    v: Tensor,
    rule: Rule,
) -> Step:
    """Take one reverse step of every sample. No value is read back to the host.

    Args:
        z: (B, …) samples in variance-exploding coordinates, float32 or float64.
        log_q: (B, M) float64, log-densities so far.
        denoised: (B, M + P, …) x̂0 of the components, then of the unconditional rows; finite also in padding.
        noise: (B, …) ξ, standard normal; ignored where v = 0.
        sigma: (B,) float64, σ_t.
        h: (B,) float64, the kernel's step.
        v: (B,) float64, the kernel's variance; at v = 0 the densities do not change and AND's weights are those of
            a vanishing noise.
        rule: What each sample does.

    Returns:
        The step taken.
    """
    batch, m = rule.active.shape
    flat = z.reshape(batch, -1)
    active = rule.active.to(flat)
    offsets = denoised.reshape(batch, denoised.shape[1], -1) - flat.unsqueeze(1)
    offsets = offsets * (h / sigma**2).to(flat)[:, None, None]
    mean = (offsets[:, :m] * active.unsqueeze(-1)).sum(1, keepdim=True) / active.sum(1)[:, None, None]
    kept = torch.cat([active, active.new_ones(batch, rule.unconditionals)], dim=1)
    rows = torch.cat(
        [
            (offsets - mean) * kept.unsqueeze(-1),
            noise.reshape(batch, 1, -1) * v.sqrt().to(flat)[:, None, None],
            mean,
        ],
        dim=1,
    )
    # The products are summed in float64: what float32 sums lose would outweigh small differences between components.
    exact = rows.double()
    gram = exact @ exact.mT
    weights, coefficients, clamped = _weights(gram, log_q, v, rule, torch.finfo(flat.dtype).eps)
    log_q = log_q + _increments(gram, coefficients, h, v, rule, flat.shape[1])
    moved = torch.bmm(coefficients.to(flat).unsqueeze(1), rows).squeeze(1)
    return Step((flat + moved).reshape(z.shape), log_q, weights, clamped)


def _weights(gram: Tensor, log_q: Tensor, v: Tensor, rule: Rule, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """κ, (B, M); the coefficients of d over the rows, (B, M + P + 2); whether κ was held back, (B,)."""
    operator, guidance = rule.operator.unsqueeze(1), rule.guidance.unsqueeze(1)
    equal = rule.active.double() / rule.active.sum(1, keepdim=True)
    likeliest = log_q.masked_fill(~rule.active, -torch.inf).amax(1, keepdim=True)
    tempered = rule.temperature.unsqueeze(1) * (log_q - likeliest) + rule.numbers
    tempered = tempered.masked_fill(~rule.active, -torch.inf)
    weights = torch.where(operator == Operator.OR, tempered.softmax(1), rule.numbers)
    balanced, clamped = _balanced(gram, equal, v, rule, epsilon)
    weights = torch.where(operator == Operator.AND, balanced, weights)
    # d's unconditional part: each component's branch in the share of `base`, less what guidance takes from it.
    base = torch.where((operator == Operator.AND) | (operator == Operator.PRODUCT), equal, weights)
    guided = torch.where(operator == Operator.AND, equal, weights)
    branches = torch.einsum("bm,bmp->bp", base - guidance * guided, rule.branch)
    ones = gram.new_ones(len(gram), 2)
    coefficients = torch.cat([guidance * weights, branches, ones], dim=1)
    return weights, coefficients, clamped & (rule.operator == Operator.AND)


def _balanced(gram: Tensor, equal: Tensor, v: Tensor, rule: Rule, epsilon: float) -> tuple[Tensor, Tensor]:
    """AND's κ = 1/M + x: the least x with Σ x = 0 that equalises the increments less their lifts.

    With d = m + (1 − w) Ū + w Σ_j x_j C_j + n, the condition <d − m, C_i> = |C_i|²/2 + v L_i + const reads
    w G x = P r for G = C Cᵀ, P the centring, r_i = |C_i|²/2 + v L_i + (w − 1) <Ū, C_i> − <n, C_i>.
    G is singular along 1 (the C_i sum to zero) and wherever components coincide. A ridge picks the least solution
    there, so that equal components get equal weights; iterated, its bias elsewhere falls to (ridge/eigenvalue)³.
    ``epsilon`` is the relative precision of the rows that the Gram matrix was made of.

    Three or more components that lie almost on a line have no point at equal distance but far away, and a lift between
    components that hardly differ needs a long way too. There the move w Σ x_j C_j is cut to a multiple of what the step
    spans, and the increments are no longer equal. A lift between components that do not differ at all is given up.
    """
    m, p = rule.components, rule.unconditionals
    inner = gram[:, :m, :m]
    mean_branch = torch.einsum("bm,bmp->bp", equal, rule.branch)
    unconditional = torch.einsum("bmp,bp->bm", gram[:, :m, m : m + p], mean_branch)
    squares = inner.diagonal(dim1=1, dim2=2)
    wanted = squares / 2 + (rule.guidance.unsqueeze(1) - 1) * unconditional - gram[:, :m, m + p]
    trace = squares.sum(1)
    ridge = _RIDGE * trace + (_ULPS * epsilon) ** 2 * gram[:, -1, -1] + torch.finfo(gram.dtype).tiny
    along_ones = (trace + ridge)[:, None, None] * equal.unsqueeze(2) * rule.active.unsqueeze(1)
    diagonal = torch.where(rule.active, ridge.unsqueeze(1), 1.0)
    system = inner + along_ones
    factor, _ = torch.linalg.cholesky_ex(system + torch.diag_embed(diagonal))

    def centred(values: Tensor) -> Tensor:
        return ((values - (values * equal).sum(1, keepdim=True)) * rule.active).unsqueeze(2)

    lift = centred(v.unsqueeze(1) * rule.numbers)
    # The part of the lift that lies where components differ, G (G + ridge)⁻¹ L, refined once.
    held = inner @ torch.cholesky_solve(lift, factor)
    held = held + inner @ torch.cholesky_solve(lift - held, factor)
    lost = (lift - held).square().sum((1, 2)) > _LOST_LIFT**2 * lift.square().sum((1, 2))
    # Two columns, w x of the balance and w x of the lift: each is a move Σ_j (w x_j) C_j with a reach of its own.
    target = torch.cat([centred(wanted), held], dim=2)
    solution = torch.cholesky_solve(target, factor)
    for _ in range(_REFINEMENTS):
        solution = solution + torch.cholesky_solve(target - system @ solution, factor)
    # In float32 the C_i sum to zero only up to rounding, and along 1 the system tells nothing else.
    solution = solution - solution.sum(1, keepdim=True) * equal.unsqueeze(2)
    moves = torch.einsum("bik,bij,bjk->bk", solution, inner, solution)
    branch = torch.einsum("bp,bpq,bq->b", mean_branch, gram[:, m : m + p, m : m + p], mean_branch)
    guidance = rule.guidance
    span = guidance**2 * trace + (1 - guidance) ** 2 * branch + v * rule.active.sum(1)
    reach = torch.stack([_REACH**2 * span, _LIFT_REACH**2 * v], dim=1)
    too_far = moves > reach
    shrink = torch.where(too_far, (reach / moves.clamp(min=torch.finfo(moves.dtype).tiny)).sqrt(), 1.0)
    # Guidance 0 follows the unconditional branch whatever κ is: no weights can balance it, so they stay equal.
    steers = guidance != 0
    scale = torch.where(steers.unsqueeze(1), shrink / torch.where(steers, guidance, 1.0).unsqueeze(1), 0.0)
    return equal + torch.einsum("bmk,bk->bm", solution, scale), too_far.any(1) | lost


def _increments(gram: Tensor, coefficients: Tensor, h: Tensor, v: Tensor, rule: Rule, dimension: int) -> Tensor:
    """Δlog q_i, (B, M): −|d − δ_i|²/2v + |d|²/2h + (D/2) log(h/v); 0 where v = 0 and in padding."""
    m = rule.components
    # e = d − m, in the rows' coordinates: d without its last coefficient.
    e = torch.cat([coefficients[:, :-1], torch.zeros_like(coefficients[:, -1:])], dim=1)
    products = torch.einsum("bk,bkl->bl", e, gram)
    e_squared = (products * e).sum(1, keepdim=True)
    d_squared = e_squared + 2 * products[:, -1:] + gram[:, -1:, -1]
    distances = e_squared - 2 * products[:, :m] + gram[:, :m, :m].diagonal(dim1=1, dim2=2)
    noisy = (v > 0).unsqueeze(1)
    h, v = h.unsqueeze(1), torch.where(noisy, v.unsqueeze(1), 1.0)
    increments = d_squared / (2 * h) - distances / (2 * v) + dimension / 2 * (h / v).log()
    return torch.where(noisy & rule.active, increments, 0.0)
