"""The sampler against exact mixtures: every claim of the mathematics, with the truth in closed form.

Margins: with n samples a share has standard error √(p(1−p)/n), and the floor of a sliced W2 is measured beside it on a
second exact sample of the same size.
"""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from pipelines.composition import And, AtLeast, Average, Not, Or, Product, Prompt, Xor
from pipelines.draws import NoiseSource
from pipelines.errors import InvalidInputError, NonFiniteError
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.kernel import Kernel
from pipelines.mixing import node_log_densities
from pipelines.networks import evaluate
from pipelines.noise import Grid
from pipelines.params import SamplingParams, image_seed
from pipelines.prediction import Prediction
from pipelines.sampler import finish, prepare, sample, step
from pipelines.superposition import Course, cached_rule, superpose
from tests.pipelines.mixtures import (
    SIGMA_MIN,
    balanced,
    log_density,
    mixture,
    model,
    plan_of,
    run,
    run_crowd,
    sliced_w2,
    union,
)

A, B = Prompt("", "a"), Prompt("", "b")


@cache
def measured(dimension):
    a, b = mixture(1, dimension), mixture(2, dimension)
    return a, b, model(a), model(b)


def pair(dimension):
    """Two mixtures, and the models of them with their measured errors."""
    *densities, a, b = measured(dimension)
    return *densities, {"a": a, "b": b}


def unguided(**options):
    return SamplingParams(**{"guidance_scale": 1.0, **options})


# --- The Itô density estimator -----------------------------------------------------------------------------------

STEPS = (32, 64, 128, 256)


def fitted_order(errors):
    """−slope of log error over log steps, and its correlation."""
    x, y = np.log(STEPS), np.log(errors)
    return -np.polyfit(x, y, 1)[0], -np.corrcoef(x, y)[0, 1]


@pytest.mark.parametrize("dimension", [2, 64])
@pytest.mark.parametrize(
    ("kernel", "order"), [(Kernel.CALIBRATED, (0.3, 0.8)), (Kernel.EXACT, (0.6, 1.2)), (Kernel.POSTERIOR, (0.4, 1.4))]
)
def test_the_estimate_converges_for_the_followed_model_and_for_the_other(dimension, kernel, order):
    """RMS error of log q against the exact density of the same point. Calibrated's increments are unbiased, so what
    is left is a martingale of order 1/2; the others also carry a bias of order 1 that rules while steps are large. The
    slope through four errors of 300 samples is known to about 0.1.
    """
    a, b, models = pair(dimension)
    errors = []
    for steps in STEPS:
        # A bias of 50 nats makes OR follow the first model alone.
        states = run_crowd(
            Or((A, B), biases=(50.0, 0.0)), unguided(steps=steps, num_images=300, kernel=kernel, seed=11), models
        )
        last = states[-2]
        truth = torch.stack([log_density(d, last.z) for d in (a, b)], dim=1)
        errors.append((last.log_q - truth).square().mean(0).sqrt().numpy())
    for which in (0, 1):
        fitted, correlation = fitted_order([e[which] for e in errors])
        assert order[0] < fitted < order[1], (which, fitted, errors)
        assert correlation > 0.97


def replayed_log_density(states, densities, sign):
    """log q along a path by the Itô formula d log q = <s, dz> − h|s|²/2; the reference's fault turns that sign."""
    start = states[0]
    total = start.log_q.clone()
    for before, after in pairwise(states[:-1]):
        sigma, h, _, _ = before.schedule.at(before.index)
        moved = after.z - before.z
        for i, density in enumerate(densities):
            score = density.score(before.z, torch.full((len(before.z),), sigma, dtype=torch.float64))
            total[:, i] += (score * moved).sum(1) - sign * h * score.square().sum(1) / 2
    return total


@pytest.mark.parametrize("steps", [50, 400])
def test_the_reference_s_sign_would_be_caught(steps):
    """The mutant's log-density difference stays wrong at any step count; ours is the same formula with its sign right.

    With the exact kernel v = h the finite-step ratio and the Itô formula are one.
    """
    a, b, models = pair(2)
    expression = Or((A, B), biases=(50.0, 0.0))
    states = run_crowd(expression, unguided(steps=steps, num_images=400, kernel=Kernel.EXACT, seed=5), models)
    last = states[-2]
    truth = log_density(a, last.z) - log_density(b, last.z)

    def bias(log_q):
        return float((log_q[:, 0] - log_q[:, 1] - truth).mean().abs())

    ours = replayed_log_density(states, (a, b), sign=1)
    torch.testing.assert_close(ours, last.log_q, rtol=0, atol=1e-8)
    assert bias(last.log_q) < 25 / steps
    assert bias(replayed_log_density(states, (a, b), sign=-1)) > 2


# --- OR ----------------------------------------------------------------------------------------------------------


def test_or_samples_the_mixture_in_twenty_steps():
    a, b, models = pair(64)
    n = 4000
    both = union(a, b)
    truth, again = (both.sample(n, torch.Generator().manual_seed(seed)) for seed in (5, 6))
    floor = sliced_w2(truth, again)
    final = run_crowd(Or((A, B)), unguided(steps=20, num_images=n), models)[-1]
    assert sliced_w2(final.z, truth) <= 1.3 * floor
    share = (log_density(a, final.z) > log_density(b, final.z)).double().mean()
    assert share.item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("bias", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_bias_is_log_prior_odds(bias, temperature):
    """Shares e^b : 1 at T = 1. At any T the bias is added, not multiplied: κ follows T·(log q) alone besides it."""
    a, b, models = pair(64)
    final = run_crowd(
        Or((A, B), temperature=temperature, biases=(bias, 0.0)), unguided(steps=50, num_images=4000, seed=3), models
    )[-1]
    share = (log_density(a, final.z) > log_density(b, final.z)).double().mean().item()
    # 3 points: the bar set for shares; the standard error is 0.8 points. At T = 1/2 the shares are not known in closed
    # form, but a bias that were multiplied by T would move them half as far as one that is not.
    if temperature == 1:
        assert share == pytest.approx(1 / (1 + math.exp(-bias)), abs=0.03)
    else:
        halved = run_crowd(
            Or((A, B), temperature=temperature, biases=(temperature * bias, 0.0)),
            unguided(steps=50, num_images=4000, seed=3),
            models,
        )[-1]
        moved = (log_density(a, halved.z) > log_density(b, halved.z)).double().mean().item()
        assert abs(share - 0.5) > abs(moved - 0.5) + 0.02


def test_a_high_temperature_commits_and_a_temperature_of_zero_does_not():
    _, _, models = pair(64)
    hot, cold = (
        run_crowd(Or((A, B), temperature=t), unguided(steps=20, num_images=500), models)[-1].mean_weights.max(1).values
        for t in (100.0, 0.0)
    )
    assert hot.mean() > 0.9
    torch.testing.assert_close(cold, torch.full_like(cold, 0.5))


# --- Balanced AND ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_balanced_and_keeps_the_estimates_equal_to_the_end(count, guidance):
    background = mixture(0, 64)
    prompts = {f"p{i}": mixture(i + 1, 64) for i in range(count)}
    models = {"m": AnalyticModel(background, prompts)}
    expression = balanced(tuple(Prompt(name, "m") for name in prompts))
    params = SamplingParams(steps=15, num_images=20, guidance_scale=guidance)
    states = run(expression, params, models)
    for before, after in pairwise(states):
        increments = after.log_density - before.log_density
        spread = increments.max(1).values - increments.min(1).values
        # The bar is 1e-9; increments of hundreds of nats are known to about 1e-13 of themselves.
        assert spread.max() < 1e-9 * max(1.0, float(increments.abs().max()))
        torch.testing.assert_close(after.weights.sum(1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_lift_shifts_the_final_gap_by_what_it_says():
    _, _, models = pair(64)
    params = unguided(steps=30, num_images=50)
    plain = run(balanced((A, B)), params, models)[-1].log_q
    lifted = run(balanced((A, B), lifts=(6.0, 0.0)), params, models)[-1].log_q
    gap = lifted[:, 0] - lifted[:, 1]
    torch.testing.assert_close(plain[:, 0], plain[:, 1], rtol=0, atol=1e-8)
    torch.testing.assert_close(gap, torch.full_like(gap, 6.0), rtol=0, atol=1e-8)


def test_lifts_are_shared_out_whole_and_spare_the_noisiest_steps():
    _, _, models = pair(16)
    schedule = run(balanced((A, B)), unguided(steps=20), models)[0].schedule
    assert schedule.lift_share.sum().item() == pytest.approx(1)
    assert schedule.lift_share[-1] == 0
    assert schedule.lift_share[0] < 0.01
    assert (schedule.lift_share >= 0).all()


def test_what_was_cut_from_a_lift_is_asked_for_again():
    """In two dimensions a step cannot take its whole share of 20 nats; those that follow make up for it, nearly all."""
    a, b, models = pair(2)
    states = run_crowd(balanced((A, B), lifts=(20.0, 0.0)), unguided(steps=25, num_images=200), models)
    gap = log_density(a, states[-2].z) - log_density(b, states[-2].z)
    assert (states[-1].clamped > 0).double().mean() > 0.5
    assert 18 < gap.mean() < 21


def test_or_nodes_balance_as_leaves_do():
    """The nodes' estimates end equal, and the true gap is no wider than between leaves, but for the tails of 200."""
    a, b, models = pair(64)
    c = mixture(3)
    models |= {"c": model(c)}
    rms = []
    for other, truth in ((B, b), (Or((B, Prompt("", "c"))), union(b, c))):
        states = run_crowd(balanced((A, other)), unguided(steps=50, num_images=200), models)
        z = states[-2].z
        rms.append((log_density(a, z) - log_density(truth, z)).square().mean().sqrt())
    nodes = node_log_densities(states[-2].plan.reported, states[-2].log_q)
    torch.testing.assert_close(nodes["terms", 0], nodes["terms", 1], rtol=0, atol=1e-6)
    assert rms[1] < 1.5 * rms[0] + 0.7


def test_a_lift_of_nearly_equal_components_does_not_wreck_the_sample():
    """Densities whose means differ by a hundredth of their width can hardly be told apart, so 5 nats between them are
    not to be had. Trying may cost 4 nats for each nat gained, 20 for all 5, not the thousands that it would take.
    """
    a = mixture(1, 64)
    b = GaussianMixture(a.means + 0.0035, 0.35)
    models = {"a": model(a), "b": model(b)}
    params = unguided(steps=25, num_images=50)
    plain, lifted = (run(balanced((A, B), lifts=(lift, 0.0)), params, models)[-1] for lift in (0.0, 5.0))
    assert log_density(a, plain.z).mean() - log_density(a, lifted.z).mean() < 20
    assert (lifted.clamped > 0).all()
    assert (plain.clamped == 0).all()


def test_a_lift_shifts_the_true_gap_too():
    """On average the exact gap moves by the lift, within 4 standard errors.

    In many dimensions: AND takes the noise out of the one direction in which the components differ, which the
    estimator does not know (docs/composition.md).
    """
    a, b, models = pair(64)
    params = unguided(steps=100, num_images=400)

    def true_gaps(lift):
        z = run_crowd(balanced((A, B), lifts=(lift, 0.0)), params, models)[-2].z
        return log_density(a, z) - log_density(b, z)

    moved = true_gaps(3.0) - true_gaps(0.0)
    error = float(moved.std()) / math.sqrt(len(moved))
    assert float(moved.mean()) == pytest.approx(3.0, abs=4 * error)
    assert error < 0.1


@pytest.mark.parametrize("operator", [And, balanced])
def test_identical_components_weigh_the_same(operator):
    a, _, models = pair(64)
    models["b"] = models["a"]
    final = run(operator((A, B)), unguided(steps=10, num_images=8), models)[-1]
    torch.testing.assert_close(final.mean_weights, torch.full_like(final.mean_weights, 0.5), rtol=0, atol=1e-6)
    single = run(A, unguided(steps=10, num_images=8), models)[-1]
    torch.testing.assert_close(final.z, single.z, rtol=0, atol=1e-6)


# --- AVERAGE, PRODUCT, one prompt --------------------------------------------------------------------------------


def test_product_of_gaussians_is_their_product():
    """p(x|1) p(x|2) / p(x) of Gaussians of one variance is the Gaussian around the sum of the means, and the field at
    guidance 1 and weights 1 is its score at every noise level.
    """
    std, dimension = 0.8, 3
    zero = GaussianMixture(torch.zeros(1, dimension), std)
    one, two = (GaussianMixture(torch.full((1, dimension), m), std) for m in (0.5, 0.3))
    models = {"m": model(zero, prompts={"one": one, "two": two})}
    expression = Product((Prompt("one", "m"), Prompt("two", "m")))
    final = run_crowd(expression, unguided(steps=50, num_images=4000), models)[-1].z
    assert final.mean(0).tolist() == pytest.approx([0.8] * dimension, abs=0.06)
    assert final.std(0).tolist() == pytest.approx([std] * dimension, rel=0.05)


def test_average_of_equal_weights_is_the_mean_field():
    a, b, models = pair(8)
    states = run(Average((A, B)), unguided(steps=5, num_images=4), models)
    torch.testing.assert_close(states[-1].mean_weights, torch.full((4, 2), 0.5, dtype=torch.float64))
    last = states[-2]
    sigma = torch.full((4,), SIGMA_MIN, dtype=torch.float64)
    expected = (a.denoised(last.z, sigma) + b.denoised(last.z, sigma)) / 2
    torch.testing.assert_close(states[-1].z, expected)


@pytest.mark.parametrize("operator", [Or, And, balanced, Average, Product])
def test_one_component_is_the_model_itself(operator):
    _, _, models = pair(8)
    params = unguided(steps=6, num_images=3)
    single = run(A, params, models)[-1]
    torch.testing.assert_close(run(operator((A,)), params, models)[-1].z, single.z, rtol=0, atol=1e-12)


def test_guidance_moves_towards_the_condition():
    background, wanted = mixture(0, 8), mixture(1, 8)
    models = {"m": AnalyticModel(background, {"p": wanted})}

    def likelihood(w):
        return log_density(
            wanted,
            run_crowd(Prompt("p", "m"), SamplingParams(steps=20, num_images=200, guidance_scale=w), models)[-1].z,
        ).mean()

    assert likelihood(0.0) < likelihood(0.5) < likelihood(1.0)


@pytest.mark.parametrize("operator", [Or, And, balanced, Product])
def test_guidance_may_start_late(operator):
    """Half of the steps as without guidance, with the references' own densities tracked; then with it."""
    prompts = {"p": mixture(1, 8), "q": mixture(2, 8)}
    models = {"m": AnalyticModel(mixture(0, 8), prompts)}
    expression = operator((Prompt("p", "m"), Prompt("q", "m")))
    params = SamplingParams(steps=9, num_images=3, guidance_scale=3.0, guidance_start=0.5)
    late = run(expression, params, models)
    never = run(expression, replace(params, guidance_start=1.0), models)
    free = run(expression, replace(params, guidance_start=0.0, guidance_scale=1.0), models)
    for i, (a, b) in enumerate(zip(late, never, strict=True)):
        assert torch.equal(a.z, b.z) == (i <= 4)
    torch.testing.assert_close(never[-1].z, free[-1].z, rtol=1e-9, atol=1e-9)
    leaves_only = free[-1].log_q[:, :2]
    torch.testing.assert_close(never[-1].log_q[:, :2], leaves_only, rtol=1e-9, atol=1e-9)
    # From there on it is the guided request's own step.
    guided = plan_of(expression, replace(params, guidance_start=0.0), models)
    draws = NoiseSource(params, (8,))
    for _ in range(5):
        draws.draw()
    (expected,) = step([replace(late[4], plan=guided)], evaluate(late[4:5], models), [draws.draw()])
    assert torch.equal(late[5].z, expected.z)


def test_guidance_starts_by_the_whole_grid_s_steps():
    """A repainting from the middle on takes the steps that it takes as the whole would."""
    params = SamplingParams(steps=10, guidance_scale=4.0, guidance_start=0.7, strength=0.5)
    assert params.calls == 5
    assert [params.guidance(i) for i in range(5)] == [1.0, 1.0, 4.0, 4.0, 4.0]


# --- Models of several kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Or, And, balanced, Xor])
@pytest.mark.parametrize(
    "kinds",
    [(Prediction.EPSILON, Prediction.V), (Prediction.FLOW, Prediction.EPSILON), (Prediction.V, Prediction.FLOW)],
)
def test_models_of_mixed_kinds_take_the_same_path(operator, kinds):
    a, b, same = pair(16)
    mixed = {
        name: AnalyticModel(density, prediction=kind, error=same[name].card.error)
        for (name, density), kind in zip((("a", a), ("b", b)), kinds, strict=True)
    }
    params = unguided(steps=20, num_images=16)
    ours, theirs = (run(operator((A, B)), params, models)[-1] for models in (same, mixed))
    torch.testing.assert_close(ours.z, theirs.z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ours.log_q, theirs.log_q, rtol=1e-7, atol=1e-7)


def test_the_grid_stays_within_what_all_models_know():
    a, b = mixture(1, 4), mixture(2, 4)
    models = {"a": AnalyticModel(a, sigma_min=0.02, sigma_max=10), "b": AnalyticModel(b, sigma_min=0.05, sigma_max=80)}
    schedule = run(Or((A, B)), unguided(steps=4), models)[0].schedule
    assert schedule.sigmas[0].item() == pytest.approx(10)
    assert schedule.sigmas[-2].item() == pytest.approx(0.05)


# --- Requests ----------------------------------------------------------------------------------------------------


def test_several_images_equal_several_requests():
    _, _, models = pair(16)
    together = sample(Or((A, B)), unguided(steps=8, num_images=3, seed=41), models)
    for i in range(3):
        alone = sample(Or((A, B)), unguided(steps=8, num_images=1, seed=image_seed(41, i)), models)
        torch.testing.assert_close(together.z[i], alone.z[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.log_density[i], alone.log_density[0], rtol=1e-5, atol=1e-4)


def test_progress_sees_every_step():
    _, _, models = pair(4)
    seen = []
    sample(
        balanced((A, B)),
        unguided(steps=5),
        models,
        lambda state: seen.append((state.index, tuple(state.weights.shape))),
    )
    assert seen == [(k, (1, 2)) for k in range(1, 6)]


@pytest.mark.parametrize("operator", [Or, And, balanced, Average, Product])
def test_the_estimate_of_a_step_is_the_field_that_it_followed(operator):
    background = mixture(0, 8)
    prompts = {"p": mixture(1, 8), "q": mixture(2, 8)}
    models = {"m": AnalyticModel(background, prompts)}
    params = SamplingParams(steps=6, num_images=3, guidance_scale=2.5)
    before, after = run(operator((Prompt("p", "m"), Prompt("q", "m"))), params, models)[:2]
    sigma = torch.full((3,), float(before.schedule.sigmas[0]), dtype=torch.float64)
    p, q, free = (d.denoised(before.z, sigma) for d in (*prompts.values(), background))
    kappa = after.weights
    followed = free + 2.5 * (kappa[:, :1] * (p - free) + kappa[:, 1:] * (q - free))
    torch.testing.assert_close(after.followed, followed, rtol=0, atol=1e-9)


def test_requests_of_every_shape_step_together_as_they_step_alone():
    background = mixture(0, 8)
    prompts = {f"p{i}": mixture(i + 1, 8) for i in range(4)}
    models = {"m": AnalyticModel(background, prompts), "n": AnalyticModel(mixture(9, 8), prompts)}
    p0, p1, p2, p3 = (Prompt(f"p{i}", "mn"[i % 2]) for i in range(4))
    requests = [
        (Or((p0,)), SamplingParams(steps=5, num_images=2)),
        (balanced((p0, p1, p2)), SamplingParams(steps=9, guidance_scale=1.0)),
        (Product((p1, p3)), SamplingParams(steps=7, num_images=3, particles=4, seed=5)),
        (p2, SamplingParams(steps=6, guidance_scale=1.0, kernel=Kernel.DETERMINISTIC)),
        (Or((And((p0, Not(p3))), Xor((p1, p2)))), SamplingParams(steps=6, candidates=3)),
        (AtLeast(2, (p0, p1, p2)), SamplingParams(steps=8, candidates=2, particles=3)),
    ]
    sources = [NoiseSource(params, (8,)) for _, params in requests]
    states = []
    for (expression, params), source in zip(requests, sources, strict=True):
        draw = source.draw()
        draw = draw._replace(normals=draw.normals.double())
        states.append(prepare(plan_of(expression, params, models), models, draw))
    # Bring them to different places first.
    for i in range(1, len(states)):
        for _ in range(i):
            (states[i],) = step([states[i]], evaluate([states[i]], models), [sources[i].draw()])
    draws = [source.draw() for source in sources]
    together = step(states, evaluate(states, models), draws)
    for state, draw, joint in zip(states, draws, together, strict=True):
        (alone,) = step([state], evaluate([state], models), [draw])
        for attribute in ("z", "log_q", "weights", "weight_sum", "log_weights", "effective", "lineage"):
            torch.testing.assert_close(getattr(joint, attribute), getattr(alone, attribute), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_an_accelerator_equals_one_on_the_cpu():
    rng = torch.Generator().manual_seed(0)
    plan = plan_of(balanced((A, Or((A, B)))), unguided(), pair(64)[2])
    z, noise = torch.randn(2, 3, 64, generator=rng)
    predicted = torch.randn(3, 3, 64, generator=rng)
    log_q = torch.zeros(3, 3, dtype=torch.float64)
    course = [torch.full((3,), x, dtype=torch.float64) for x in (3.0, 4.0, 2.0, 0.1)]
    here, there = (
        superpose(
            *(tensor.to(device) for tensor in (z, log_q, predicted, noise)),
            Course(*(tensor.to(device) for tensor in course)),
            cached_rule(((plan.program, 3, 1.0),), torch.device(device)),
        )
        for device in ("cpu", "cuda")
    )
    for ours, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [Kernel.DETERMINISTIC, Kernel.CALIBRATED])
def test_no_density_is_claimed_where_none_was_estimated(kernel):
    _, _, models = pair(4)
    steps = 5 if kernel is Kernel.DETERMINISTIC else 1
    assert sample(A, unguided(steps=steps, kernel=kernel), models).log_density.isnan().all()


@pytest.mark.parametrize("grid", Grid)
def test_every_grid_samples(grid):
    a, _, models = pair(8)
    final = run_crowd(A, unguided(steps=60, num_images=300, grid=grid), models)[-1]
    truth = log_density(a, a.sample(4000, torch.Generator().manual_seed(0))).mean()
    # A linear grid leaves few steps to low noise, so it is only near; the others are within a standard error or two.
    assert abs(log_density(a, final.z).mean() - truth) < (4 if grid is Grid.LINEAR else 0.5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"seed": -1}, "seed"),
        ({"num_images": 0}, "num_images"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"guidance_start": 1.5}, "guidance_start"),
        ({"strength": -0.1}, "strength"),
    ],
)
def test_parameters_out_of_bounds_are_refused_by_name(options, field):
    with pytest.raises(InvalidInputError) as refused:
        SamplingParams(**options)
    assert refused.value.field == (field,)


def test_a_sample_that_overflowed_is_refused():
    _, _, models = pair(4)
    state = run(A, unguided(steps=2), models)[-1]
    with pytest.raises(NonFiniteError, match="overflowed"):
        finish(replace(state, z=state.z + torch.inf))
