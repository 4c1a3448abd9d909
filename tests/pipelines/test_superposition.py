"""The batched step against the restatement in reference.py, and against what the mathematics demands of it."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pipelines.composition import TRAITS, And, Average, Not, Or, Product, Prompt, Xor, walk
from pipelines.mixing import compile_program
from pipelines.superposition import Course, Rule, superpose
from tests.pipelines.mixtures import balanced
from tests.pipelines.reference import Answer, a_sample
from tests.pipelines.trees import ROOTS

GUIDANCES = (1.0, 0.5, 3.3, 7.5)
# Rounding of sums of a few hundred numbers is some 1e-13 of the largest, and nested NOTs and sharp ANDs multiply it.
# Balanced AND's ridge, 1e-9 of the Gram matrix, is undone by two refinements up to its cube.
TOLERANCE = 1e-9
OPERATORS = {"or": Or, "and": And, "balanced": balanced, "average": Average, "product": Product, "xor": Xor}


def prompts(count, models=1):
    return tuple(Prompt(str(i), "mno"[i % models]) for i in range(count))


def needs_references(sample):
    """Whether there is no way without the models' reference branches."""
    nodes = [node for _, node in walk(sample.expression) if not isinstance(node, Prompt)]
    return sample.guidance != 1 or any(TRAITS[type(node)].refers for node in nodes)


def batched(samples, dtype=torch.float64, *, spare=False):
    """The same samples through the product, in one padded batch.

    ``spare`` leaves the reference branches out wherever nothing needs them.
    """
    free = [{} if spare and not needs_references(s) else s.free for s in samples]
    programs = [
        compile_program(s.expression, [[*branches].index(p.model) for p in s.written()] if branches else ())
        for s, branches in zip(samples, free, strict=True)
    ]
    rule = Rule.join([(program, 1, s.guidance) for program, s in zip(programs, samples, strict=True)])
    m, width = rule.leaves, rule.active.shape[1]
    predicted = torch.zeros(len(samples), width, len(samples[0].z), dtype=dtype)
    log_q = torch.zeros(len(samples), width, dtype=torch.float64)
    columns = []
    for row, (s, branches) in enumerate(zip(samples, free, strict=True)):
        answers = [s.prompts[prompt] for prompt in s.written()]
        own = [*range(len(answers)), *range(m, m + len(branches))]
        for column, answer in zip(own, [*answers, *branches.values()], strict=True):
            predicted[row, column] = torch.tensor((s.z - answer.denoised) / s.sigma)
            log_q[row, column] = answer.log_q
        columns.append((own[: len(answers)], own[len(answers) :]))
    z, noise = (torch.tensor(np.stack([getattr(s, key) for s in samples])).to(dtype) for key in ("z", "noise"))
    at = (
        torch.tensor([getattr(s, key) for s in samples], dtype=torch.float64) for key in ("sigma", "h", "v", "lifted")
    )
    return superpose(z, log_q, predicted, noise, Course(*at), rule), columns


def results(taken, columns, index):
    """(z, log q of the leaves, {reference's place: log q}, coefficients of the leaves, log ratio) of one sample."""
    own, others = columns[index]
    return (
        taken.z[index].numpy(),
        taken.log_q[index, own].numpy(),
        taken.log_q[index, others].numpy(),
        taken.weights[index, : len(own)].numpy(),
        float(taken.log_ratio[index]),
    )


def assert_equal(got, wanted, weights=TOLERANCE):
    """Each of the results, relative to the largest number in it, or to 1; the coefficients to their own tolerance."""
    wanted = [*wanted[:2], np.array([*wanted[2].values()][: len(got[2])]), *wanted[3:]]
    bars = (TOLERANCE, TOLERANCE, TOLERANCE, weights, TOLERANCE)
    for value, expected, bar in zip(got, wanted, bars, strict=True):
        scale = np.abs(expected).max(initial=1)
        np.testing.assert_allclose(value / scale, expected / scale, rtol=0, atol=bar)


def one(sample, dtype=torch.float64):
    """A single sample: (z, gains of the leaves' log q, their coefficients), and the whole step."""
    taken, columns = batched([sample], dtype)
    z, log_q, _, weights, _ = results(taken, columns, 0)
    return z, log_q - [sample.prompts[p].log_q for p in sample.written()], weights, taken


crowds = st.lists(st.tuples(ROOTS, st.sampled_from(GUIDANCES)), min_size=1, max_size=6)


def has_twins(sample):
    """Whether two terms of a balanced AND have one score."""
    terms, is_balanced = sample.nodes()
    offsets = [term.offset for term in terms]
    scale = max(map(np.linalg.norm, offsets))
    return is_balanced and any(np.linalg.norm(a - b) < 1e-6 * scale for a, b in combinations(offsets, 2))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(crowds, st.sampled_from([8, 64, 257]), st.booleans(), st.integers(0, 2**31))
def test_a_crowd_of_unrelated_expressions_equals_each_alone_and_the_restatement(crowd, dimension, spare, seed):
    rng = np.random.default_rng(seed)
    samples = [a_sample(rng, expression, dimension, guidance, spread=1.0) for expression, guidance in crowd]
    together, columns = batched(samples, spare=spare)
    for i, s in enumerate(samples):
        alone, own_columns = batched([s], spare=spare)
        got, (z, log_q, free, *rest) = results(together, columns, i), results(alone, own_columns, 0)
        # How a balanced AND shares out among terms that are one density, by whatever name, is left to rounding: neither
        # the sample nor its densities know of it.
        shared = np.finfo(float).max if has_twins(s) else TOLERANCE
        expected = s.step()
        if s.unmet:
            assert all(np.isfinite(value).all() for value in got)
            continue
        assert_equal(got, (z, log_q, dict(enumerate(free)), *rest), shared)
        if not together.clamped[i]:
            assert_equal(got, expected, shared)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
@pytest.mark.parametrize("models", [2, 3])
def test_components_of_several_models_are_guided_by_their_own_branches(operator, models):
    rng = np.random.default_rng(5)
    samples = [a_sample(rng, OPERATORS[operator](prompts(3, models)), 32, 4.0) for _ in range(5)]
    taken, columns = batched(samples)
    for i, s in enumerate(samples):
        assert_equal(results(taken, columns, i), s.step())


# --- Balanced AND ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("guidance", [1.0, 3.3, 7.5])
def test_balanced_and_moves_all_log_densities_alike(count, guidance):
    """Proposition 6: the increments agree, to the lifts; the weights sum to one. To 1e-9."""
    rng = np.random.default_rng(count)
    for _ in range(20):
        lifts = 0.1 * rng.normal(size=count)
        _, gained, kappa, _ = one(a_sample(rng, balanced(prompts(count), tuple(lifts)), 64, guidance))
        assert np.ptp(gained - lifts) < 1e-9
        assert kappa.sum() == pytest.approx(1, abs=1e-9)


def test_balanced_and_of_two_is_the_paper_s_formula():
    """κ = ½ − <n, D>/|D|² for M = 2, w = 1, no lift."""
    s = a_sample(np.random.default_rng(0), balanced(prompts(2)))
    _, _, kappa, _ = one(s)
    first, second = (answer.denoised for answer in s.prompts.values())
    difference = s.h * (first - second) / s.sigma**2
    noise = np.sqrt(s.v) * s.noise
    assert kappa[0] == pytest.approx(0.5 - noise @ difference / (difference @ difference), rel=1e-9)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_balanced_and_of_averages_moves_their_log_densities_alike(guidance):
    """Its terms are nodes: an average's own density moves by the normal law around the mean of its offsets."""
    a, b, c, d = prompts(4)
    s = a_sample(
        np.random.default_rng(4), balanced((Average((a, b), (1.0, 3.0)), Product((c, d), (0.5, 0.25)))), 64, guidance
    )
    z, _, _, _ = one(s)

    def offset(answer):
        return s.h * (answer.denoised - s.z) / s.sigma**2

    free = offset(s.free["m"])
    p, q, r, t = (offset(s.prompts[prompt]) for prompt in (a, b, c, d))
    gains = [
        norm.logpdf(z - s.z, mean, np.sqrt(s.v)).sum()
        for mean in (0.25 * p + 0.75 * q, 0.5 * r + 0.25 * t + 0.25 * free)
    ]
    assert np.ptp(gains) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operator", [Or, And, balanced])
def test_equal_components_get_equal_weights(operator, dtype):
    rng = np.random.default_rng(0)
    for count in (2, 3, 5):
        s = a_sample(rng, operator(prompts(count)), 64, 4.0)
        s.prompts = dict.fromkeys(s.prompts, Answer(s.prompts[prompts(1)[0]].denoised, 0.0))
        z, _, kappa, _ = one(s, dtype)
        # What a network's float32 leaves between equal components is cut off; float64's own rounding is not.
        np.testing.assert_allclose(kappa, 1 / count, atol=1e-9 if dtype is torch.float32 else 1e-4)
        assert np.isfinite(z).all()


@pytest.mark.parametrize("dimension", [256, 4096])
def test_terms_that_differ_by_rounding_alone_get_equal_weights(dimension):
    """One prompt on two copies of a model, whose float32 outputs differ by the company in their batches."""
    rng = np.random.default_rng(0)
    s = a_sample(rng, balanced(prompts(2)), dimension, 4.0)
    first, second = s.prompts.values()
    second.denoised = first.denoised + 1e-6 * rng.normal(size=dimension)
    _, _, kappa, _ = one(s, torch.float32)
    np.testing.assert_allclose(kappa, 0.5, atol=0.05)


def test_balanced_and_gives_twins_among_others_the_same_weight():
    s = a_sample(np.random.default_rng(3), balanced(prompts(4)), 64, 4.0)
    s.prompts[prompts(3)[2]].denoised = s.prompts[prompts(1)[0]].denoised
    _, gained, kappa, _ = one(s)
    assert kappa[0] == pytest.approx(kappa[2], abs=1e-6)
    assert np.ptp(gained) < 1e-7


def test_a_lift_raises_the_component_that_carries_it():
    _, gained, _, _ = one(a_sample(np.random.default_rng(1), balanced(prompts(3), (0.0, 0.2, 0.0)), 64, 2.0))
    assert gained[1] - gained[0] == pytest.approx(0.2, abs=1e-9)
    assert gained[0] == pytest.approx(gained[2], abs=1e-9)


def test_a_step_takes_its_share_of_a_lift():
    s = a_sample(np.random.default_rng(1), balanced(prompts(2), (0.0, 2.0)), 64, 2.0, lifted=0.05)
    _, gained, _, _ = one(s)
    assert gained[1] - gained[0] == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_balanced_and_makes_up_for_what_earlier_steps_left_over(guidance):
    """Whatever the log-densities are before, after the step they differ by the lifts that are due."""
    s = a_sample(np.random.default_rng(4), balanced(prompts(3), (0.0, 2.0, 0.0)), 64, guidance, spread=0.3, lifted=0.25)
    _, _, _, taken = one(s)
    after = taken.log_q[0, :3].numpy()
    assert not taken.clamped[0]
    np.testing.assert_allclose(after - after[0], [0.0, 0.5, 0.0], atol=1e-8)


def test_a_lift_between_twins_is_given_up_and_said_to_be():
    s = a_sample(np.random.default_rng(9), balanced(prompts(2), (1.0, 0.0)), 64, 4.0)
    first, second = s.prompts.values()
    second.denoised = first.denoised
    _, _, kappa, taken = one(s)
    np.testing.assert_allclose(kappa, 0.5, atol=1e-6)
    assert taken.clamped.tolist() == [True]


def test_guidance_zero_with_balanced_and_follows_the_reference():
    s = a_sample(np.random.default_rng(7), balanced(prompts(2)), 16, 0.0)
    z, _, kappa, _ = one(s)
    np.testing.assert_allclose(kappa, 0.5)
    expected = s.z + s.h * (s.free["m"].denoised - s.z) / s.sigma**2 + np.sqrt(s.v) * s.noise
    np.testing.assert_allclose(z, expected, atol=1e-12)


def test_balanced_and_of_three_in_a_line_is_held_back_and_says_so():
    """No point near a line is equally far from three of its points: the move is cut, the sample stays finite."""
    rng = np.random.default_rng(8)
    s, free = (a_sample(rng, balanced(prompts(3)), 16) for _ in range(2))
    first, second, third = s.prompts.values()
    along = second.denoised
    second.denoised, third.denoised = first.denoised + along, first.denoised + 2 * along
    third.denoised[0] += 1e-3
    taken, columns = batched([s, free])
    assert taken.clamped.tolist() == [True, False]
    offsets = s.h * (np.stack([answer.denoised for answer in s.prompts.values()]) - s.z) / s.sigma**2
    spread = np.linalg.norm(offsets - offsets.mean(0)) + np.sqrt(s.v) * np.linalg.norm(s.noise)
    moved = np.linalg.norm(results(taken, columns, 0)[0] - s.z - offsets.mean(0))
    assert moved < 12 * spread


def test_terms_exactly_on_a_line_are_held_back_and_said_to_be():
    """One of three terms is the mean of the others, to the last digit."""
    a, b = prompts(2, 2)
    expression = balanced((a, b, Average((a, b))))
    _, _, kappa, taken = one(a_sample(np.random.default_rng(8), expression, 16))
    assert np.abs(kappa).max() < 1e3
    assert taken.clamped.tolist() == [True]


def test_float32_rows_keep_balance_where_components_nearly_agree():
    """At high noise the offsets agree to many digits: differences first keep the increments equal in float32."""
    rng = np.random.default_rng(6)
    h = 14.6**2 - 12.0**2
    given = {"sigma": 14.6, "h": h, "v": 0.68 * h, "z": 14.6 * rng.normal(size=4096)}
    s = a_sample(rng, balanced(prompts(2)), 4096, 4.0, **given)
    first, second = s.prompts.values()
    second.denoised = first.denoised + 1e-3 * second.denoised
    _, gained, kappa, _ = one(s, torch.float32)
    assert abs(np.diff(gained)[0]) < 1e-4
    assert kappa.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sigma", [14.6, 1.0])
@pytest.mark.parametrize("gap", [1e-2, 1e-3])
def test_weights_in_float32_are_those_in_float64(sigma, gap):
    """κ from float32 predictions that agree to ``gap``, against the restatement with the same predictions in float64.

    By way of x̂0 the predictions would be rounded to the digits of z, and κ to 5e-4. The rows' own rounding, 6e-8 of
    themselves, is a share 6e-5 of the smaller gap, averaged over 4,096 numbers.
    """
    rng, h = np.random.default_rng(0), 0.33 * sigma**2

    def single():
        return rng.normal(size=4096).astype(np.float32).astype(float)

    s = a_sample(rng, balanced(prompts(2)), 4096, 4.0, sigma=sigma, h=h, v=0.68 * h, noise=single())
    s.z = (sigma * single()).astype(np.float32).astype(float)
    common = single()
    for answer in (*s.prompts.values(), *s.free.values()):
        answer.denoised = s.z - sigma * (common + gap * single()).astype(np.float32).astype(float)
    _, _, kappa, _ = one(s, torch.float32)
    np.testing.assert_allclose(kappa, s.step()[3], rtol=0, atol=2e-6)


# --- Everything else ---------------------------------------------------------------------------------------------


def test_or_weighs_by_temperature_and_bias():
    """κ_0 : κ_1 = exp(T(log q_0 − log q_1) + b_0 − b_1): the bias is not multiplied by T (the paper, not its code)."""
    s = a_sample(np.random.default_rng(1), Or(prompts(2), temperature=2.5, biases=(0.4, -0.3)), 16)
    _, _, kappa, _ = one(s)
    first, second = s.prompts.values()
    assert np.log(kappa[0] / kappa[1]) == pytest.approx(2.5 * (first.log_q - second.log_q) + 0.7, rel=1e-12)


@pytest.mark.parametrize(
    "expression", [Average(prompts(3)), And((prompts(1)[0], Not(prompts(2)[1]))), balanced(prompts(2))]
)
def test_a_noise_free_step_changes_no_density_and_lands_on_the_guided_estimate(expression):
    s = a_sample(np.random.default_rng(2), expression, 16, 3.0, v=0.0)
    s.h = s.sigma**2
    z, gained, _, taken = one(s)
    np.testing.assert_array_equal(gained, 0)
    assert taken.log_ratio.tolist() == [0.0]
    np.testing.assert_allclose(taken.followed[0], z, atol=1e-12)
    np.testing.assert_allclose(z, s.step()[0], atol=1e-12)
    if isinstance(expression, Average):
        free = s.free["m"].denoised
        mean = np.mean([answer.denoised for answer in s.prompts.values()], axis=0)
        np.testing.assert_allclose(z, free + 3.0 * (mean - free), atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROOTS, st.sampled_from(GUIDANCES), st.integers(0, 2**31))
def test_the_log_ratio_is_that_of_two_normal_densities(expression, guidance, seed):
    """log N(d; 0, h) − log N(d; δ̃, v) by scipy; δ̃ is the step without its noise, and it is what z followed."""
    s = a_sample(np.random.default_rng(seed), expression, 8, guidance)
    z, _, _, taken = one(s)
    d = z - s.z
    proposed = d - np.sqrt(s.v) * s.noise
    expected = norm.logpdf(d, 0, np.sqrt(s.h)).sum() - norm.logpdf(d, proposed, np.sqrt(s.v)).sum()
    assert float(taken.log_ratio[0]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(taken.followed[0], s.z + proposed * s.sigma**2 / s.h, rtol=1e-9, atol=1e-9)


def test_padding_stays_empty():
    rng = np.random.default_rng(4)
    a, b = prompts(2)
    samples = [
        a_sample(rng, expression, 16, 4.0)
        for expression in (Or((a,)), balanced((a, b)), Average(prompts(5, 3)), And((a, Not(Or((a, b))))))
    ]
    taken, columns = batched(samples)
    for row, (own, others) in enumerate(columns):
        empty = [column for column in range(taken.log_q.shape[1]) if column not in own + others]
        assert (taken.log_q[row, empty] == 0).all()
        assert (taken.weights[row, len(own) :] == 0).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(ROOTS, min_size=1, max_size=4),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([1.0, 1e3, 1e6]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
@example([Or(prompts(3), temperature=100.0)], 1.0, 1e6, torch.float32, 0)
def test_weights_and_log_densities_stay_finite(expressions, guidance, scale, dtype, seed):
    """However far apart the log-densities are."""
    rng = np.random.default_rng(seed)
    samples = [a_sample(rng, expression, 8, guidance) for expression in expressions]
    for s in samples:
        for answer in (*s.prompts.values(), *s.free.values()):
            answer.log_q *= scale
    taken, _ = batched(samples, dtype)
    for part in taken:
        assert torch.isfinite(part.double()).all()
