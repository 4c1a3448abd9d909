"""Lift: running sums against direct ones, estimates against exact mixtures, choices against brute force."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.choice import ChoiceSums, agreement, choice_weights, satisfaction
from pipelines.composition import And, AtLeast, Average, Not, Or, Product, Prompt, Xor, leaves
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.lift import LiftSums, lift_weights
from pipelines.networks import evaluate
from pipelines.noise import karras_sigmas
from pipelines.params import SamplingParams, Select
from pipelines.plan import JUDGED_LEVELS
from pipelines.sampler import finish, sample
from pipelines.schedule import make_schedule
from tests.pipelines.mixtures import balanced, log_density, mixture, model, plan_of, run, run_crowd
from tests.pipelines.trees import ROOTS, TREES

A, B = Prompt("a", "m"), Prompt("b", "m")


@cache
def held(dimension):
    """A model of two narrow prompts over a broad background, whose error is measured."""
    background = mixture(0, dimension, 4, 0.6)
    prompts = {"a": mixture(1, dimension, 2, 0.35), "b": mixture(2, dimension, 2, 0.35)}
    return {"m": model(background, prompts=prompts)}, background, prompts


def unguided(**options):
    return SamplingParams(**{"guidance_scale": 1.0, "candidates": 2} | options)


def true_lift(density, background, x):
    return log_density(density, x, 0.0) - log_density(background, x, 0.0)


# --- Sums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (3, 4, 6)])
def test_running_sums_equal_the_direct_sum_over_stored_estimates(shape):
    """Σ ω (|x̂0_u − x|² − |x̂0_i − x|²), cell by cell and in all, for leaves that share references."""
    rng = torch.Generator().manual_seed(0)
    branch, weights = (0, 1, 0), [0.3, 2.0, 7.0, 0.0]
    estimates = [torch.randn(2, 5, *shape, generator=rng, dtype=torch.float64) for _ in weights]
    noisy = [torch.randn(2, *shape, generator=rng, dtype=torch.float64) for _ in weights]
    sigmas = [9.0, 2.0, 0.5, 0.03]
    sums = LiftSums.zeros(noisy[0], 3)
    for z, sigma, estimate, weight in zip(noisy, sigmas, estimates, weights, strict=True):
        sums = sums.add(z, sigma, (z.unsqueeze(1) - estimate) / sigma, branch, weight)
    for x in torch.randn(3, 2, *shape, generator=rng, dtype=torch.float64):
        squares = [(estimate - x.unsqueeze(1)) ** 2 for estimate in estimates]
        direct = sum(w * (s[:, [3, 4, 3]] - s[:, :3]) for w, s in zip(weights, squares, strict=True))
        torch.testing.assert_close(sums.maps(x), direct.sum(2), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sums.total(x), direct.flatten(2).sum(2), rtol=1e-12, atol=1e-12)
    picked = torch.tensor([1, 1, 0])
    torch.testing.assert_close(sums.take(picked).maps(x[picked]), sums.maps(x)[picked], rtol=0, atol=0)


def test_a_request_s_lift_is_the_direct_sum_over_its_steps():
    models, background, prompts = held(4)
    expression = Or((A, And((B, Not(A)))))
    states = run(expression, SamplingParams(steps=7, num_images=3, guidance_scale=2.5), models)
    x = states[-1].z
    direct = torch.zeros(3, 3, dtype=torch.float64)
    for state, weight in zip(states, lift_weights(states[0].schedule.sigmas[:-1]), strict=False):
        levels = torch.full((3,), state.sigma, dtype=torch.float64)
        free = (background.denoised(state.z, levels) - x).square().sum(1)
        for i, leaf in enumerate(leaves(expression)):
            direct[:, i] += weight * (free - (prompts[leaf.text].denoised(state.z, levels) - x).square().sum(1))
    torch.testing.assert_close(finish(states[-1]).lift, direct, rtol=1e-9, atol=1e-9)


def test_float32_sums_are_exact_enough():
    """The sums' parts are ω x², up to 1e4 times the lift's own; on pictures' sizes they keep a thousandth of a nat."""
    models, _, _ = held(64)
    params = SamplingParams(steps=25, num_images=20, guidance_scale=3.0)
    exact, single = (finish(run(Or((A, B)), params, models, dtype)[-1]) for dtype in (torch.float64, torch.float32))
    assert single.z.dtype == torch.float32
    # The paths themselves part by float32's rounding: relative 1e-3 of lifts of hundreds of nats.
    torch.testing.assert_close(single.lift, exact.lift, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("power", [0, 2, 4])
def test_the_weights_of_the_levels_integrate(power):
    """Σ ω σ^p is ½ ∫ σ^p dγ = ∫ σ^(p − 2) d log σ over the grid, and above its first level σ^p counts as constant.

    A trapezoid over steps of log σ of 0.0062 is off by their square's twelfth of the second derivative: 2e-5.
    """
    low, high = 0.03, 14.6
    sigmas = torch.logspace(math.log10(high), math.log10(low), 1000, dtype=torch.float64)
    inside = math.log(high / low) if power == 2 else (high ** (power - 2) - low ** (power - 2)) / (power - 2)
    total = float(torch.tensor(lift_weights(sigmas), dtype=torch.float64) @ sigmas**power)
    assert total == pytest.approx(inside + high ** (power - 2) / 2, rel=1e-4)


# --- Truth -------------------------------------------------------------------------------------------------------


def test_the_cached_lift_of_unguided_samples_converges_to_the_truth():
    """E over samples of q_i: cached − true → 0, for on an exact path z is x with independent noise over it.

    With 1,000 samples the mean is known to 0.15 nats of 12.3 (the noise of single paths is 5 nats); bars are four
    standard errors. With 25 steps the error is of their size: the sampler's and the quadrature's.
    """
    models, background, prompts = held(8)
    biases = {}
    for steps in (25, 400):
        params = unguided(steps=steps, num_images=500)
        last = run_crowd(A, params, models)[-1]
        errors = last.lifts.total(last.z)[:, 0] - true_lift(prompts["a"], background, last.z)
        biases[steps] = float(errors.mean())
        bar = 4 * float(errors.std()) / math.sqrt(1000)
    assert abs(biases[400]) < bar < 0.7
    assert abs(biases[25]) < 2.5


@pytest.mark.parametrize("levels", [25, 200])
def test_fresh_noise_measures_the_lift(levels):
    """On exact pictures and fresh noise at every level of a grid: unbiased within four standard errors and what 25
    levels of trapezoids are off, 1 nat of 12.3; and the right pictures come first, the more levels the surer.
    """
    _, background, prompts = held(8)
    x = prompts["a"].sample(3000, torch.Generator().manual_seed(1))
    sigmas = karras_sigmas(levels, 0.03, 14.6)[:-1]
    errors, correlation = fresh(sigmas, lift_weights(sigmas), x, prompts["a"], background)
    bar = 4 * float(errors.std()) / math.sqrt(3000) + (1.0 if levels == 25 else 0.1)
    assert abs(float(errors.mean())) < bar
    assert correlation > (0.7 if levels == 25 else 0.95)


def fresh(sigmas, weights, x, density, background):
    """(estimate − truth of every picture, their correlation) on fresh noise at the given levels."""
    noise = torch.Generator().manual_seed(2)
    sums = LiftSums.zeros(x, 1)
    for sigma, weight in zip(sigmas.tolist(), weights, strict=True):
        levels = torch.full((len(x),), sigma, dtype=torch.float64)
        z = x + sigma * torch.randn(x.shape, generator=noise, dtype=torch.float64)
        sums = sums.add(
            z, sigma, -sigma * torch.stack([density.score(z, levels), background.score(z, levels)], 1), (0,), weight
        )
    estimate, truth = sums.total(x)[:, 0], true_lift(density, background, x)
    return estimate - truth, float(torch.corrcoef(torch.stack([estimate, truth]))[0, 1])


@pytest.mark.parametrize("dimension", [2, 8, 64])
def test_a_few_levels_of_fresh_noise_measure_the_lift(dimension):
    """The few levels of "density" are unbiased but for the quadrature: a tenth of the lift is its room."""
    models, background, prompts = held(dimension)
    schedule = make_schedule(plan_of(A, unguided(select=Select.DENSITY), models), models)
    x = prompts["a"].sample(3000, torch.Generator().manual_seed(1))
    errors, _ = fresh(schedule.judged, schedule.lift_weights[schedule.steps :], x, prompts["a"], background)
    truth = float(true_lift(prompts["a"], background, x).mean())
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(3000) + truth / 10


def test_choosing_by_density_takes_fresh_noise_over_the_finished_pictures():
    """The sums begin anew after the last step, at pictures that stay, with noise of each level's own size."""
    models, _, _ = held(4)
    params = unguided(steps=6, num_images=50, select=Select.DENSITY)
    states = run_crowd(Or((A, B)), params, models)
    schedule = states[0].schedule
    judged = states[6:-1]
    assert len(judged) == JUDGED_LEVELS
    assert [state.sigma for state in judged] == schedule.judged.tolist()
    clean = states[-1].z
    seen = []
    for state in judged:
        assert torch.equal(state.clean, clean)
        seen.append((state.z - clean) / state.sigma)
    noise = torch.stack(seen)
    # Four standard errors of the variance of 8 × 100 × 4 numbers, and of the correlation of two levels' 400.
    assert float(noise.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / noise.numel()))
    assert abs(float((noise[0] * noise[1]).mean())) < 4 / math.sqrt(noise[0].numel())
    sums = LiftSums.zeros(clean, 2)
    for state, weight in zip(judged, states[0].schedule.lift_weights[states[0].schedule.steps :], strict=True):
        sums = sums.add(state.z, state.sigma, evaluate([state], models)[0].predicted, (0, 0), weight)
    torch.testing.assert_close(states[-1].lifts.total(clean), sums.total(clean), rtol=1e-9, atol=1e-9)
    # The pictures and their densities are those that the cached lift would have had to choose from.
    cached = run_crowd(Or((A, B)), replace(params, select=Select.LIFT), models)[-1]
    assert torch.equal(cached.z, clean)
    assert torch.equal(cached.log_q, states[-1].log_q)


# --- Satisfaction ------------------------------------------------------------------------------------------------


def holds(expression, facts):
    """Whether a formula is true, ``facts`` giving the truth of its leaves in writing order."""
    if isinstance(expression, Prompt):
        return next(facts)
    terms = [holds(term, facts) for term in expression.terms]
    match expression:
        case Or():
            return any(terms)
        case And() | Average() | Product():
            return all(terms)
        case Not():
            return not terms[0]
        case Xor():
            return terms.count(True) == 1
        case AtLeast(count=count):
            return terms.count(True) >= count


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ROOTS, st.integers(0, 2**31))
def test_a_picture_satisfies_what_is_true_of_it(expression, seed):
    """A leaf holds where its lift is positive. The score's sign is the formula's truth, and its size is the lift of the
    leaf that decides, so with lifts of one size it is that size.
    """
    rng = np.random.default_rng(seed)
    count = len(leaves(expression))
    signs = rng.choice([-1.0, 1.0], size=(16, count))
    expected = [1.0 if holds(expression, iter((line > 0).tolist())) else -1.0 for line in signs]
    sized = satisfaction(expression, torch.tensor(1e4 * signs))
    assert sized.tolist() == [1e4 * sign for sign in expected]
    sizes = rng.uniform(0.1, 50, size=signs.shape)
    score = satisfaction(expression, torch.tensor(sizes * signs))
    assert torch.sign(score).tolist() == expected
    assert all(abs(value) in line for value, line in zip(score.tolist(), sizes.tolist(), strict=True))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(TREES, st.integers(0, 2**31))
def test_without_negations_a_higher_lift_is_never_worse(expression, seed):
    if any(isinstance(node, Not | Xor) for node in nodes(expression)):
        return
    rng = np.random.default_rng(seed)
    lower = torch.tensor(rng.normal(size=(8, len(leaves(expression)))))
    higher = lower + torch.tensor(rng.exponential(size=lower.shape))
    assert (satisfaction(expression, higher) >= satisfaction(expression, lower)).all()


def test_among_pictures_that_satisfy_the_expression_the_prompts_agree_best_in_the_chosen_one():
    """Satisfied ones come first, the least disagreement wins among them; else the one that comes closest."""
    evidence = torch.tensor([[5.0, 1.0], [2.0, 3.0], [9.0, -1.0], [-4.0, -2.0]], dtype=torch.float64)
    disagreement = torch.tensor([[0.5, 2.0], [1.0, 1.5], [0.1, 0.1], [0.0, 0.0]], dtype=torch.float64)
    zeros = torch.zeros(4, 2, 1, dtype=torch.float64)
    sums = ChoiceSums(LiftSums(evidence.unsqueeze(2), zeros), disagreement)
    x = torch.zeros(4, 1, dtype=torch.float64)
    assert sums.score(And((A, B)), x).argsort(descending=True).tolist() == [1, 0, 2, 3]
    # OR needs one of them, and that one must agree; a term of NOT has nothing to agree with.
    assert sums.score(Or((A, B)), x).argsort(descending=True).tolist() == [2, 0, 1, 3]
    assert agreement(And((A, Not(B))), disagreement).tolist() == [-0.5, -1.0, -0.1, 0.0]


def test_choice_looks_at_its_own_noise_levels():
    sigmas = torch.logspace(1, -2, 61, dtype=torch.float64)
    evidence, disagreement = (torch.tensor(each) for each in zip(*choice_weights(3 * sigmas, 3.0), strict=True))
    assert ((evidence > 0) == (sigmas > 0.19)).all()
    assert ((disagreement > 0) == ((sigmas > 0.095) & (sigmas < 0.27))).all()
    # ∫ d log σ over a band of 0.1 to 0.5; ∫ σ⁻¹ d log σ = 1/0.2 − 1/10, where the cell of the lowest level reaches
    # half a step of 0.115 further down: 6 %.
    assert float(disagreement.sum()) == pytest.approx(math.log(2.5), abs=0.12)
    assert float(evidence.sum()) == pytest.approx(1 / 0.2 - 1 / 10, rel=0.08)


def nodes(expression):
    yield expression
    if not isinstance(expression, Prompt):
        for term in expression.terms:
            yield from nodes(term)


# --- The best of several -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", Select)
@pytest.mark.parametrize("expression", [And((A, B)), balanced((A, B)), Or((A, And((B, A)))), And((A, Not(B))), A])
def test_the_best_candidate_is_returned(expression, select):
    models, _, _ = held(4)
    params = SamplingParams(steps=8, num_images=5, candidates=6, guidance_scale=3.0, select=select, seed=2)
    states = run(expression, params, models, torch.float32)
    last = states[-1]
    scores = last.choice.score(expression, last.z).reshape(5, 6)
    samples = sample(expression, params, models)
    assert samples.candidate.tolist() == scores.argmax(1).tolist()
    assert len(set(samples.candidate.tolist())) > 1
    places = torch.arange(5) * 6 + samples.candidate
    for got, expected in (
        (samples.z, last.z),
        (samples.log_density, last.log_density),
        (samples.lift, last.lifts.total(last.z)),
    ):
        torch.testing.assert_close(got, expected[places], rtol=0, atol=0)
    assert samples.lift_maps.shape == (5, len(leaves(expression)))


@pytest.mark.parametrize("expression", [Or((A, B)), And((A, Not(B))), balanced((A, B)), A])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_candidate_zero_is_the_single_sample_and_candidates_never_change_each_other(expression, guidance):
    models, _, _ = held(4)
    params = SamplingParams(steps=8, num_images=2, guidance_scale=guidance, seed=9)
    drawn = {
        count: run(expression, replace(params, candidates=count), models)[-1].z.reshape(2, count, 4)
        for count in (1, 3, 5)
    }
    # References that only candidates ask for, and more samples in a batch: the same numbers to float64's rounding.
    torch.testing.assert_close(drawn[3][:, :1], drawn[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(drawn[5][:, :3], drawn[3], rtol=1e-9, atol=1e-9)


def test_a_candidate_that_overflowed_is_never_chosen():
    models, _, _ = held(4)
    last = run(And((A, B)), SamplingParams(steps=4, num_images=2, candidates=3, guidance_scale=3.0), models)[-1]
    best = finish(last).candidate
    broken = last.z.clone()
    broken[torch.arange(2) * 3 + best] = torch.inf
    chosen = finish(replace(last, z=broken))
    assert (chosen.candidate != best).all()
    assert torch.isfinite(chosen.z).all()


def test_a_lift_is_told_per_leaf_and_unknown_without_a_reference():
    models, _, _ = held(4)
    both = sample(Or((A, Prompt("", "m"))), SamplingParams(steps=4), models)
    assert torch.isfinite(both.lift).all()
    assert both.lift[:, 1].tolist() == [0.0]
    alone = sample(A, SamplingParams(steps=4, guidance_scale=1.0), models)
    assert alone.lift.isnan().all()
    assert alone.lift_maps is None


def test_lift_separates_pictures_that_show_a_prompt_from_those_that_do_not():
    """Samples of one prompt, explained by it and by another whose mean is 1.4 away in each of 16 numbers.

    That is 1.4² · 16 / (2 · 0.3²) = 174 nats between them, which single paths know to some ten nats.
    """
    near, far = (GaussianMixture(torch.full((1, 16), at, dtype=torch.float64), 0.3) for at in (0.7, -0.7))
    models = {"m": AnalyticModel(GaussianMixture(torch.zeros(1, 16), 1.0), {"a": near, "b": far})}
    samples = sample(Product((A, B), (1.0, 0.0)), SamplingParams(steps=25, guidance_scale=1.0, num_images=16), models)
    assert (samples.lift[:, 0] - samples.lift[:, 1] > 100).all()
    assert (samples.lift[:, 1] < -50).all()
