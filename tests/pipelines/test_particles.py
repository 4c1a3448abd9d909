"""Particles: the resampling by itself, and whole runs against products of mixtures in closed form."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pipelines.composition import And, Average, Not, Or, Product, Prompt
from pipelines.draws import Draw, NoiseSource
from pipelines.families.analytic import GaussianMixture
from pipelines.networks import evaluate
from pipelines.params import SamplingParams
from pipelines.particles import THRESHOLD, effective_size, pick, resample, survivors, systematic
from pipelines.sampler import prepare, sample, step
from tests.pipelines.mixtures import log_density, mixture, model, plan_of, product_of, run, run_crowd, sliced_w2

A, B = Prompt("a", "m"), Prompt("b", "m")

log_weights = st.lists(st.floats(-30, 30), min_size=1, max_size=16)
uniforms = st.floats(0, 1, exclude_max=True)


def unguided(**options):
    return SamplingParams(**{"guidance_scale": 1.0, "steps": 10, "particles": 4} | options)


@cache
def held(dimension=2):
    """A model of two prompts over a broad background."""
    background = GaussianMixture(torch.zeros(1, dimension), 1.2)
    prompts = {"a": mixture(1, dimension, 3, 0.5), "b": mixture(7, dimension, 3, 0.5)}
    return {"m": model(background, prompts=prompts)}, background, prompts


def test_the_closed_form_that_runs_are_held_to_is_the_product():
    """log of it less log a + log b − log r is one number everywhere: that of its normalisation."""
    _, background, prompts = held(3)
    x = 2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, r = (log_density(density, x, 0.0) for density in (*prompts.values(), background))
    constant = log_density(product_of(*prompts.values(), background), x, 0.0) - (a + b - r)
    assert float(constant.std()) < 1e-9


# --- Resampling by itself ----------------------------------------------------------------------------------------


def counted(weights, uniform):
    """How many copies of each particle systematic resampling takes."""
    ancestors = systematic(torch.tensor([weights], dtype=torch.float64), torch.tensor([uniform], dtype=torch.float64))
    assert ancestors.diff().ge(0).all()
    return np.bincount(ancestors[0], minlength=len(weights))


def normalised(weights):
    powers = np.exp(np.array(weights) - max(weights))
    return powers / powers.sum()


@settings(deadline=None, derandomize=True)
@given(log_weights, uniforms)
def test_every_particle_is_taken_its_share_of_times_rounded_down_or_up(weights, uniform):
    copies, shares = counted(weights, uniform), len(weights) * normalised(weights)
    assert copies.sum() == len(weights)
    # Sums of weights are known to rounding, which decides where a share is a whole number.
    assert (copies >= np.floor(shares - 1e-9)).all()
    assert (copies <= np.ceil(shares + 1e-9)).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(log_weights)
def test_resampling_is_unbiased(weights):
    """The mean number of copies is K w. Over u it is a step function of at most K + 2 steps of height 1, which a grid
    of n midpoints integrates to (K + 2)/2n.
    """
    n, count = 500, len(weights)
    rows = torch.tensor(weights, dtype=torch.float64).expand(n, count)
    ancestors = systematic(rows, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    mean = torch.stack([(ancestors == k).sum(1) for k in range(count)], 1).double().mean(0)
    np.testing.assert_allclose(mean, count * normalised(weights), rtol=0, atol=(count + 2) / 2 / n)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(log_weights)
def test_one_particle_is_picked_by_its_weight(weights):
    n = 500
    rows = torch.tensor(weights, dtype=torch.float64).expand(n, -1)
    picked = pick(rows, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    shares = np.bincount(picked, minlength=len(weights)) / n
    # Each share is one interval of u: a grid of n knows its length to 1/n.
    np.testing.assert_allclose(shares, normalised(weights), rtol=0, atol=1 / n)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.lists(st.floats(-30, 30), min_size=5, max_size=5), uniforms), min_size=1, max_size=6))
def test_groups_are_resampled_each_by_itself(groups):
    weights = torch.tensor([w for w, _ in groups], dtype=torch.float64)
    marks = torch.tensor([u for _, u in groups], dtype=torch.float64)
    ancestors, kept = resample(weights, marks)
    sizes = effective_size(weights)
    for i in range(len(groups)):
        own, own_kept = resample(weights[i : i + 1], marks[i : i + 1])
        assert torch.equal(ancestors[i], own[0])
        assert torch.equal(kept[i], own_kept[0])
        if sizes[i] >= THRESHOLD * 5:
            assert ancestors[i].tolist() == [0, 1, 2, 3, 4]
            assert torch.equal(kept[i], weights[i])
        else:
            assert torch.equal(ancestors[i], systematic(weights[i : i + 1], marks[i : i + 1])[0])
            assert (kept[i] == 0).all()


def test_the_effective_size_is_the_number_of_particles_that_count():
    weights = torch.tensor(
        [[0.0, 0, 0, 0], [0, -800, -800, -800], [0, 0, -800, -800], [5000, 5000, 5000, 5000]]
    ).double()
    assert effective_size(weights).tolist() == pytest.approx([4, 1, 2, 4])


def test_survivors_are_different_first_ancestors():
    lineage = torch.tensor([[0, 1, 2, 3], [2, 2, 2, 2], [3, 0, 3, 0]])
    assert survivors(lineage).tolist() == [4, 1, 2]


# --- Weights -----------------------------------------------------------------------------------------------------


def weighted_step(expression, params, models):
    """(before, after) of the first step; near σ_max weights differ too little for resampling, so all stay in place."""
    before, after = run(expression, params, models)[:2]
    assert torch.equal(after.lineage, before.lineage)
    assert (after.log_weights != 0).all()
    return before, after


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8), (1.5, -0.5)])
def test_where_weights_sum_to_one_the_noise_cancels(weights):
    """Δlog w = (|δ̃|² − Σ β_i |δ_i|²)/2v with δ̃ = Σ β_i δ_i, from the exact scores."""
    models, _, prompts = held()
    before, after = weighted_step(Product((A, B), weights), unguided(num_images=5), models)
    sigma, h, v, _ = before.schedule.at(0)
    levels = torch.full((20,), sigma, dtype=torch.float64)
    offsets = [h * density.score(before.z, levels) for density in prompts.values()]
    proposed = sum(weight * offset for weight, offset in zip(weights, offsets, strict=True))
    squares = sum(weight * (offset**2).sum(1) for weight, offset in zip(weights, offsets, strict=True))
    expected = ((proposed**2).sum(1) - squares) / (2 * v)
    # Differences of squares of some hundred nats.
    torch.testing.assert_close(after.log_weights, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "expression", [Product((A, B)), And((A, Not(B, 0.5)), sharpness=0.1), Or((A, And((A, B), sharpness=0.1)))]
)
def test_a_weight_is_the_target_s_change_over_the_proposal_s_density(expression, guidance):
    """Δlog w = Δℓ + log N(d; 0, h) − log N(d; δ̃, v), ℓ over log q_u + w (log q_i − log q_u), by scipy."""
    models, _, _ = held()
    params = unguided(num_images=3, guidance_scale=guidance)
    before, after = weighted_step(expression, params, models)

    def target(state):
        a, b, free = (state.log_q.numpy()[:, column] for column in columns)
        a, b = free + guidance * (a - free), free + guidance * (b - free)
        match expression:
            case Product():
                return a + b - free
            case And():
                return -np.logaddexp(-0.1 * a, -0.1 * (1.5 * free - 0.5 * b)) / 0.1 + np.log(2) / 0.1
        return np.logaddexp(a, -np.logaddexp(-0.1 * a, -0.1 * b) / 0.1 + np.log(2) / 0.1) - np.log(2)

    leaves = before.plan.program.leaves
    # Without any reference branch none has a part in the formula either.
    columns = (0, leaves - 1, leaves if before.log_q.shape[1] > leaves else 0)
    sigma, h, v, _ = before.schedule.at(0)
    d = (after.z - before.z).numpy()
    proposed = (after.followed - before.z).numpy() * h / sigma**2
    ratio = norm.logpdf(d, 0, math.sqrt(h)).sum(1) - norm.logpdf(d, proposed, math.sqrt(v)).sum(1)
    expected = target(after) - target(before) + ratio
    np.testing.assert_allclose(after.log_weights.numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("operator", [Average, Or, And, lambda terms: Product(terms, (0.7, 0.3))])
def test_equal_components_leave_the_weights_alone(operator):
    models, _, _ = held()
    states = run(operator((A, A)), unguided(num_images=5), models)
    for state in states[:-1]:
        # Increments of tens of nats, to float64's rounding.
        assert state.log_weights.abs().max() < 1e-9
        torch.testing.assert_close(state.effective, torch.full_like(state.effective, 4.0))
    assert states[-1].lineage.tolist() == [4] * 5


# --- Whole runs --------------------------------------------------------------------------------------------------


def test_particles_reach_a_product_of_mixtures_that_one_sample_misses():
    """Two exact samples of 1,500 are 0.03 apart. One particle alone follows the sum of scores, which is the product's
    score at no noise level but the last: it is 0.40 away. Sixteen come within 0.09: what is left is of 50 steps and of
    groups of 16. The bars leave a third on both sides.
    """
    models, background, prompts = held()
    truth = product_of(*prompts.values(), background)
    n = 1500
    exact = truth.sample(n, torch.Generator().manual_seed(5))
    found = {}
    for count in (1, 16):
        params = unguided(steps=50, num_images=n, particles=count)
        found[count] = run_crowd(Product((A, B)), params, models)[-1]
    distances = {count: sliced_w2(state.z, exact) for count, state in found.items()}
    assert distances[1] > 0.3
    assert distances[16] < 0.13
    assert (found[16].lineage > 1).double().mean() > 0.99


def test_particles_change_nothing_of_what_is_exact_already():
    """OR is the mixture: its weights carry the steps' error alone, and sampling with them stays the mixture."""
    models, _, prompts = held()
    n = 1500
    both = GaussianMixture(torch.cat([d.means for d in prompts.values()]), 0.5)
    exact, again = (both.sample(n, torch.Generator().manual_seed(seed)) for seed in (5, 6))
    params = unguided(steps=50, num_images=n)
    z = run_crowd(Or((A, B)), params, models)[-1].z
    # Distances between samples of this size spread by about half of their mean.
    assert sliced_w2(z, exact) < 2.5 * sliced_w2(exact, again)


def test_the_last_step_leaves_one_particle_of_each_group_with_its_own_values():
    models, _, _ = held()
    params = unguided(num_images=3, candidates=2)
    states = run(Product((A, B)), params, models)
    before, last = states[-2:]
    assert before.z.shape == (24, 2)
    for part in (last.z, last.log_q, last.weights, last.weight_sum, last.clamped, last.followed, last.lineage):
        assert len(part) == 6
    assert last.done
    # Which particle was left is known by its log-densities, which the last step does not change.
    groups = before.log_q.reshape(6, 4, -1)
    assert ((groups - last.log_q.unsqueeze(1)).abs().amax(2) == 0).any(1).all()
    samples = sample(Product((A, B)), params, models)
    assert samples.z.shape == (3, 2)
    assert samples.survivors.shape == (3,)
    assert ((samples.survivors >= 1) & (samples.survivors <= 4)).all()


def test_resampled_particles_carry_all_that_is_theirs():
    """After a resampling equal first numbers mean equal everything: nothing of a particle stays behind."""
    models, _, _ = held()
    params = unguided(steps=20, num_images=40, particles=8, candidates=2)
    states = run(Product((Or((A, B)), A), (2.0, 2.0)), params, models)
    seen = False
    for before, after in pairwise(states[:-1]):
        for group in range(0, len(after.z), 8):
            rows = after.z[group : group + 8]
            for i in range(8):
                for j in range(i):
                    if torch.equal(rows[i], rows[j]):
                        seen = True
                        for part in (after.log_q, after.lineage, after.weight_sum, after.lifts.slope, after.followed):
                            assert torch.equal(part[group + i], part[group + j])
            assert set(after.lineage[group : group + 8].tolist()) <= set(before.lineage[group : group + 8].tolist())
    assert seen


def advance(states, models, draws):
    return step(states, evaluate(states, models), draws)


def test_groups_of_one_picture_alone_and_in_a_crowd_are_the_same_bit_for_bit():
    """Three pictures of one request are each drawn alone, and beside strangers of the same width."""
    models, _, _ = held()
    expression, params = Product((A, B), (1.5, 1.0)), unguided(steps=12, num_images=3, particles=6, seed=40)
    together = run(expression, params, models)
    assert together[-1].plan.program.leaves == 2
    for image in range(3):
        alone = run(expression, replace(params, num_images=1, seed=40 + image), models)
        for joint, own in zip(together, alone, strict=True):
            size = len(own.z)
            mine = slice(image * size, image * size + size)
            for attribute in ("z", "log_q", "log_weights", "lineage"):
                assert torch.equal(getattr(joint, attribute)[mine], getattr(own, attribute)), attribute


def test_a_request_with_particles_takes_the_same_way_beside_strangers():
    """Wider and deeper expressions share its steps: the same ancestors, and numbers to the rounding of wider sums."""
    models, _, _ = held()
    requests = [
        (Product((A, B), (1.5, 1.0)), unguided(steps=12, num_images=2, particles=6, seed=3)),
        (Or((A, And((B, Not(A))), B)), unguided(steps=15, guidance_scale=3.0, num_images=2, particles=3)),
        (A, unguided(steps=20, particles=1)),
    ]
    alone = run(*requests[0], models)
    sources = [NoiseSource(params, (2,)) for _, params in requests]
    states = []
    for (expression, params), source in zip(requests, sources, strict=True):
        first = source.draw()
        first = Draw(first.normals.double(), first.uniforms)
        states.append(prepare(plan_of(expression, params, models), models, first))
    for own in alone[1:]:
        states = advance(states, models, [source.draw() for source in sources])
        assert torch.equal(states[0].lineage, own.lineage)
        for attribute in ("z", "log_q", "log_weights"):
            torch.testing.assert_close(getattr(states[0], attribute), getattr(own, attribute), rtol=1e-9, atol=1e-9)


def test_the_density_of_what_particles_draw_is_higher_where_weights_say_so():
    """A product of weights 2: sharper than the sum of its parts. 400 pictures, four standard errors."""
    models, background, prompts = held()
    a, b = prompts.values()

    def target(z):
        return 2 * log_density(a, z, 0.0) + 2 * log_density(b, z, 0.0) - 3 * log_density(background, z, 0.0)

    scores = {}
    for count in (1, 8):
        params = unguided(steps=40, num_images=400, particles=count)
        z = run_crowd(Product((A, B), (2.0, 2.0)), params, models)[-1].z
        scores[count] = target(z)
    error = math.hypot(*(float(score.std()) / 20 for score in scores.values()))
    assert float(scores[8].mean() - scores[1].mean()) > 4 * error
