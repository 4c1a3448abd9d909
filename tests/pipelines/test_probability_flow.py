"""Log-densities along the probability-flow ODE, against exact mixtures."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipelines.composition import Average, Or, Prompt
from pipelines.draws import probes
from pipelines.errors import InvalidInputError
from pipelines.families.analytic import AnalyticModel
from pipelines.kernel import Kernel
from pipelines.networks import evaluate
from pipelines.params import SamplingParams
from pipelines.probability_flow import increments
from pipelines.sampler import prepare, step
from tests.pipelines.mixtures import balanced, crowd_draws, log_density, mixture, plan_of, run_crowd

A, B = Prompt("", "a"), Prompt("", "b")
STEPS = (16, 32, 64)


class ExactDivergence(AnalyticModel):
    """A mixture that gives tr J / D along every direction: Hutchinson's estimate of it has no noise."""

    def differentiate_noise(self, z, sigma, condition, direction):
        basis = torch.eye(z.shape[1], dtype=z.dtype)
        columns = [
            super(ExactDivergence, self).differentiate_noise(z, sigma, condition, e.expand_as(z))[1][:, k]
            for k, e in enumerate(basis)
        ]
        trace = torch.stack(columns, dim=1).sum(1, keepdim=True)
        return self.predict_noise(z, sigma, condition), direction * trace / z.shape[1]


def pair(dimension, *, exact=True):
    a, b = mixture(1, dimension), mixture(2, dimension)
    kind = ExactDivergence if exact else AnalyticModel
    return (a, b), {"a": kind(a), "b": kind(b)}


def flowing(**options):
    return SamplingParams(**{"guidance_scale": 1.0, "kernel": Kernel.PROBABILITY_FLOW, **options})


def errors(states, densities):
    """The estimates less the truth at the smallest σ, (B, M).

    The last call corrects the last step's increments before it lands on its estimate, so the final state knows best.
    """
    before, after = states[-2:]
    truth = torch.stack([log_density(density, before.z) for density in densities], dim=1)
    start = torch.stack([log_density(density, states[0].z, states[0].sigma) for density in densities], dim=1)
    # Sampling takes all components for one Gaussian at σ_max; what they differ by there is no error of the steps.
    return after.log_q - truth - (states[0].log_q - start)


@pytest.mark.parametrize("dimension", [2, 16])
def test_the_estimate_converges_with_second_order_for_the_followed_model_and_for_the_other(dimension):
    densities, models = pair(dimension)
    found = []
    for steps in STEPS:
        # A bias of 50 nats makes OR follow the first model alone.
        states = run_crowd(Or((A, B), biases=(50.0, 0.0)), flowing(steps=steps, num_images=50, seed=11), models)
        found.append(errors(states, densities).square().mean(0).sqrt().numpy())
    for which in (0, 1):
        order = -np.polyfit(np.log(STEPS), np.log([each[which] for each in found]), 1)[0]
        assert 1.7 < order < 2.6, (which, found)


def test_increments_by_one_end_alone_are_of_first_order():
    """So the second order above is the correction's doing."""
    (density, _), models = pair(2)
    found = []
    for steps in STEPS:
        states = run_crowd(Average((A,)), flowing(steps=steps, num_images=50, seed=11), models)[:-1]
        total = log_density(density, states[0].z, states[0].sigma)
        for before, after in pairwise(states):
            (answer,) = evaluate([before], models)
            levels = (before.sigma, before.sigma, after.sigma)
            total = total + increments(after.z - before.z, answer.predicted, answer.divergence, *levels)[:, 0]
        found.append(float((total - log_density(density, states[-1].z)).square().mean().sqrt()))
    order = -np.polyfit(np.log(STEPS), np.log(found), 1)[0]
    assert 0.8 < order < 1.3, found


def test_or_samples_the_mixture_s_shares():
    """1,000 pictures know a share of one half to 0.016; the margin is three of these."""
    densities, models = pair(16)
    final = run_crowd(Or((A, B)), flowing(steps=40, num_images=1000, seed=3), models)[-1]
    likelier = log_density(densities[0], final.z) > log_density(densities[1], final.z)
    assert likelier.double().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("lift", [0.0, 5.0])
def test_balanced_and_ends_at_the_wanted_gap(lift):
    """With exact divergences the true gap falls with the square of the steps, up to what the terms differ by at σ_max:
    the 0.2 nats of two mixtures in 16 dimensions.
    """
    (a, b), models = pair(16)
    rms = []
    for steps in (25, 100):
        params = flowing(steps=steps, num_images=100, seed=5)
        states = run_crowd(balanced((A, B), (lift, 0.0)), params, models)
        gap = log_density(a, states[-2].z) - log_density(b, states[-2].z)
        rms.append(float((gap - lift).square().mean().sqrt()))
        estimated = states[-2].log_q[:, 0] - states[-2].log_q[:, 1]
        assert estimated.mean().item() == pytest.approx(lift, abs=0.5)
    assert rms[1] < 0.35
    assert rms[1] < rms[0]


def test_hutchinson_s_estimate_is_unbiased_over_seeds():
    """The mean over 400 seeds against the exact trace, in standard errors of that mean."""
    (a, _), models = pair(16, exact=False)
    _, exact = pair(16)
    z = 0.5 * torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, sigma = z.expand(400, -1), torch.full((400,), 0.7, dtype=torch.float64)
    condition = {"density": torch.zeros(400, dtype=torch.int64)}
    e = probes(flowing(num_images=400), (16,), 3).double()
    assert set(e.unique().tolist()) == {-1.0, 1.0}
    _, along = models["a"].differentiate_noise(z, sigma, condition, e)
    estimates = (e * along).sum(1)
    _, spread = exact["a"].differentiate_noise(z, sigma, condition, torch.ones_like(e))
    truth = spread[0].sum()
    standard_error = estimates.std() / 20
    assert standard_error > 0
    assert abs(estimates.mean() - truth) < 4 * standard_error


def test_probes_differ_between_calls_and_follow_the_image_s_own_seed():
    params = flowing(num_images=3, seed=7)
    first, second = probes(params, (4, 4), 0), probes(params, (4, 4), 1)
    assert not torch.equal(first, second)
    assert torch.equal(first[2:], probes(flowing(seed=9), (4, 4), 0))


def test_a_crowd_of_kernels_steps_as_each_alone():
    """Flows and diffusions share one batched superposition."""
    _, models = pair(8, exact=False)
    expressions = (Or((A, B)), balanced((A, B)), balanced((A, B)), Average((A, B)))
    kernels = (Kernel.PROBABILITY_FLOW, Kernel.PROBABILITY_FLOW, Kernel.CALIBRATED, Kernel.DETERMINISTIC)
    plans = [
        plan_of(e, flowing(steps=6, kernel=k, num_images=2), models) for e, k in zip(expressions, kernels, strict=True)
    ]
    draws = [crowd_draws(plan.params, 8, seed=i) for i, plan in enumerate(plans)]
    together = [prepare(plan, models, draw()) for plan, draw in zip(plans, draws, strict=True)]
    alone = list(together)
    while not together[0].done:
        drawn = [draw() for draw in draws]
        alone = [step([s], evaluate([s], models), [d])[0] for s, d in zip(alone, drawn, strict=True)]
        together = step(together, evaluate(together, models), drawn)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.z, theirs.z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.log_q, theirs.log_q, rtol=1e-5, atol=1e-4)


def test_particles_and_known_pictures_need_noise():
    _, models = pair(2, exact=False)
    with pytest.raises(InvalidInputError, match="adds no noise, which particles needs") as refused:
        plan_of(Or((A, B)), flowing(particles=4), models)
    assert refused.value.field == ("kernel",)
    with pytest.raises(InvalidInputError, match="adds no noise, which the density of a picture needs"):
        plan_of(Or((A, B)), flowing(), models, retrace=True)
