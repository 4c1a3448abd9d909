import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.superposition import Operator, Rule, superpose
from tests.pipelines.reference import Reference

OPERATORS = {op.name.lower(): op for op in Operator}


def a_sample(rng, operator, count, dimension, guidance, models):
    """A random sample's step; ``models`` unconditional branches are shared out among its components."""
    sigma_t = float(rng.uniform(0.3, 8))
    sigma_s = sigma_t * float(rng.uniform(0.4, 0.95))
    h = sigma_t**2 - sigma_s**2
    v = h * float(rng.uniform(0.3, 1.0))
    share = rng.integers(0, models, size=count)
    branches = rng.normal(size=(models, dimension))
    numbers = rng.uniform(0.1, 1, size=count)
    if operator == "average":
        numbers = numbers / numbers.sum()
    if operator == "and":
        # The share of one step: small enough that no sample needs more than the reach that a lift has.
        numbers = 0.1 * rng.normal(size=count)
    return share, Reference(
        operator,
        z=sigma_t * rng.normal(size=dimension),
        log_q=3 * rng.normal(size=count),
        denoised=rng.normal(size=(count, dimension)),
        branches=branches[share],
        noise=rng.normal(size=dimension),
        sigma=sigma_t,
        h=h,
        v=v,
        guidance=guidance,
        numbers=numbers,
        temperature=float(rng.uniform(0.5, 2)),
    )


def batched(shares, samples, dtype=torch.float64):
    """The same samples through the product, in one padded batch; (z, log q, κ) of each, padding cut off."""
    rules, parts = [], []
    for share, s in zip(shares, samples, strict=True):
        used, index = np.unique(share, return_inverse=True)
        branch = np.eye(len(used))[index]
        rules.append(
            Rule(
                torch.tensor([int(OPERATORS[s.operator])]),
                torch.ones(1, len(s.log_q), dtype=torch.bool),
                torch.tensor(s.numbers)[None],
                torch.tensor([s.temperature], dtype=torch.float64),
                torch.tensor([float(s.guidance)], dtype=torch.float64),
                torch.tensor(branch)[None],
            )
        )
        first = [int(np.flatnonzero(share == u)[0]) for u in used]
        parts.append((s.denoised, s.branches[first]))
    rule = Rule.join(rules)
    m, p = rule.components, rule.unconditionals
    size = samples[0].z.shape[0]
    denoised = torch.zeros(len(samples), m + p, size, dtype=dtype)
    log_q = torch.zeros(len(samples), m, dtype=torch.float64)
    for row, (s, (conditional, unconditional)) in enumerate(zip(samples, parts, strict=True)):
        denoised[row, : len(conditional)] = torch.tensor(conditional)
        denoised[row, m : m + len(unconditional)] = torch.tensor(unconditional)
        log_q[row, : len(s.log_q)] = torch.tensor(s.log_q)
    z, noise = (torch.tensor(np.stack([getattr(s, key) for s in samples])).to(dtype) for key in ("z", "noise"))
    sigma, h, v = (torch.tensor([getattr(s, key) for s in samples], dtype=torch.float64) for key in ("sigma", "h", "v"))
    taken = superpose(z, log_q, denoised, noise, sigma, h, v, rule)
    return [
        (taken.z[i].numpy(), taken.log_q[i, : len(s.log_q)].numpy(), taken.weights[i, : len(s.log_q)].numpy())
        for i, s in enumerate(samples)
    ], taken


crowds = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATORS)), st.integers(1, 6), st.sampled_from([1.0, 0.5, 3.3, 7.5]), st.just(1)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(crowds, st.sampled_from([8, 64, 257]), st.integers(0, 2**31))
def test_a_batch_equals_a_loop_of_single_steps(crowd, dimension, seed):
    rng = np.random.default_rng(seed)
    made = [a_sample(rng, op, count, dimension, w, models) for op, count, w, models in crowd]
    shares, samples = zip(*made, strict=True)
    ours, _ = batched(shares, samples)
    for got, s in zip(ours, samples, strict=True):
        for value, expected in zip(got, s.step(), strict=True):
            scale = np.abs(expected).max() + 1
            np.testing.assert_allclose(value / scale, expected / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
@pytest.mark.parametrize("models", [2, 3])
def test_components_of_several_models_are_guided_by_their_own_branches(operator, models):
    rng = np.random.default_rng(5)
    made = [a_sample(rng, operator, 3, 32, 4.0, models) for _ in range(5)]
    shares, samples = zip(*made, strict=True)
    ours, _ = batched(shares, samples)
    for got, s in zip(ours, samples, strict=True):
        for value, expected in zip(got, s.step(), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("guidance", [1.0, 3.3, 7.5])
def test_and_moves_all_log_densities_alike(count, guidance):
    """Proposition 6: the increments agree, to the lifts; the weights sum to one. To 1e-9."""
    rng = np.random.default_rng(count)
    made = [a_sample(rng, "and", count, 64, guidance, 1) for _ in range(20)]
    shares, samples = zip(*made, strict=True)
    ours, _ = batched(shares, samples)
    for (_, log_q, kappa), s in zip(ours, samples, strict=True):
        increments = log_q - s.log_q - s.numbers
        assert np.ptp(increments) < 1e-9
        assert kappa.sum() == pytest.approx(1, abs=1e-9)


def test_and_of_two_is_the_paper_s_formula():
    """κ = ½ − <n, D>/|D|² for M = 2, w = 1, no lift."""
    rng = np.random.default_rng(0)
    share, s = a_sample(rng, "and", 2, 64, 1.0, 1)
    s.numbers = np.zeros(2)
    ((_, _, kappa),), _ = batched([share], [s])
    difference = s.h * (s.denoised[0] - s.denoised[1]) / s.sigma**2
    noise = np.sqrt(s.v) * s.noise
    assert kappa[0] == pytest.approx(0.5 - noise @ difference / (difference @ difference), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operator", ["or", "and"])
def test_equal_components_get_equal_weights(operator, dtype):
    rng = np.random.default_rng(0)
    made = []
    for count in (2, 3, 5):
        share, s = a_sample(rng, operator, count, 64, 4.0, 1)
        s.denoised = np.repeat(s.denoised[:1], count, axis=0)
        s.log_q, s.numbers = np.zeros(count), np.zeros(count)
        made.append((share, s))
    ours, _ = batched(*zip(*made, strict=True), dtype=dtype)
    for (z, _, kappa), (_, s) in zip(ours, made, strict=True):
        np.testing.assert_allclose(kappa, 1 / len(s.log_q), atol=1e-6)
        assert np.isfinite(z).all()


def test_and_gives_twins_among_others_the_same_weight():
    rng = np.random.default_rng(3)
    share, s = a_sample(rng, "and", 4, 64, 4.0, 1)
    s.denoised[2] = s.denoised[0]
    s.numbers = np.zeros(4)
    ((_, log_q, kappa),), _ = batched([share], [s])
    assert kappa[0] == pytest.approx(kappa[2], abs=1e-6)
    assert np.ptp(log_q - s.log_q) < 1e-7


def test_lift_raises_the_component_that_carries_it():
    rng = np.random.default_rng(1)
    share, s = a_sample(rng, "and", 3, 64, 2.0, 1)
    s.numbers = np.array([0.0, 0.2, 0.0])
    ((_, log_q, _),), _ = batched([share], [s])
    gained = log_q - s.log_q
    assert gained[1] - gained[0] == pytest.approx(0.2, abs=1e-9)
    assert gained[0] == pytest.approx(gained[2], abs=1e-9)


def test_or_weighs_by_temperature_and_bias():
    """κ_0 : κ_1 = exp(T(log q_0 − log q_1) + b_0 − b_1): the bias is not multiplied by T (the paper, not its code)."""
    rng = np.random.default_rng(1)
    share, s = a_sample(rng, "or", 2, 16, 1.0, 1)
    s.temperature, s.numbers = 2.5, np.array([0.4, -0.3])
    ((_, _, kappa),), _ = batched([share], [s])
    assert np.log(kappa[0] / kappa[1]) == pytest.approx(2.5 * (s.log_q[0] - s.log_q[1]) + 0.7, rel=1e-12)


def test_a_noise_free_step_changes_no_density_and_lands_on_the_guided_estimate():
    rng = np.random.default_rng(2)
    share, s = a_sample(rng, "average", 3, 16, 3.0, 1)
    s.h, s.v = s.sigma**2, 0.0
    ((z, log_q, kappa),), _ = batched([share], [s])
    np.testing.assert_array_equal(log_q, s.log_q)
    expected = s.branches[0] + 3.0 * (kappa @ s.denoised - s.branches[0])
    np.testing.assert_allclose(z, expected, atol=1e-12)


def test_padding_stays_empty():
    rng = np.random.default_rng(4)
    made = [a_sample(rng, op, count, 16, 4.0, 1) for op, count in (("or", 1), ("and", 2), ("average", 5))]
    _, taken = batched(*zip(*made, strict=True))
    assert (taken.weights[0, 1:] == 0).all()
    assert (taken.weights[1, 2:] == 0).all()
    assert (taken.log_q[1, 2:] == 0).all()


def test_float32_rows_keep_and_balanced_where_components_nearly_agree():
    """At high noise the offsets agree to many digits: differences first keep the increments equal in float32."""
    rng = np.random.default_rng(6)
    share, s = a_sample(rng, "and", 2, 4096, 4.0, 1)
    s.denoised[1] = s.denoised[0] + 1e-3 * s.denoised[1]
    s.sigma, s.h, s.v = 14.6, 14.6**2 - 12.0**2, (14.6**2 - 12.0**2) * 0.68
    s.z, s.numbers = 14.6 * rng.normal(size=4096), np.zeros(2)
    ((_, log_q, kappa),), _ = batched([share], [s], dtype=torch.float32)
    assert abs(np.diff(log_q - s.log_q)[0]) < 1e-4
    assert kappa.sum() == pytest.approx(1, abs=1e-9)


def test_a_lift_between_twins_is_given_up_and_said_to_be():
    rng = np.random.default_rng(9)
    share, s = a_sample(rng, "and", 2, 64, 4.0, 1)
    s.denoised[1] = s.denoised[0]
    s.numbers = np.array([1.0, 0.0])
    ((_, _, kappa),), taken = batched([share], [s])
    np.testing.assert_allclose(kappa, 0.5, atol=1e-6)
    assert taken.clamped.tolist() == [True]


def test_guidance_zero_with_and_follows_the_unconditional_branch():
    rng = np.random.default_rng(7)
    share, s = a_sample(rng, "and", 2, 16, 0.0, 1)
    ((z, _, kappa),), _ = batched([share], [s])
    np.testing.assert_allclose(kappa, 0.5)
    expected = s.z + s.h * (s.branches[0] - s.z) / s.sigma**2 + np.sqrt(s.v) * s.noise
    np.testing.assert_allclose(z, expected, atol=1e-12)


def test_and_of_three_in_a_line_is_held_back_and_says_so():
    """No point near a line is equally far from three of its points: the move is cut, the sample stays finite."""
    rng = np.random.default_rng(8)
    share, s = a_sample(rng, "and", 3, 16, 1.0, 1)
    s.denoised = s.denoised[:1] + np.array([[0.0], [1.0], [2.0]]) * s.denoised[1:2]
    s.denoised[2, 0] += 1e-3
    s.numbers = np.zeros(3)
    free = a_sample(rng, "and", 3, 16, 1.0, 1)
    ours, taken = batched([share, free[0]], [s, free[1]])
    assert taken.clamped.tolist() == [True, False]
    offsets = s.h * (s.denoised - s.z) / s.sigma**2
    spread = np.linalg.norm(offsets - offsets.mean(0)) + np.sqrt(s.v) * np.linalg.norm(s.noise)
    moved = np.linalg.norm(ours[0][0] - s.z - offsets.mean(0))
    assert moved < 12 * spread
