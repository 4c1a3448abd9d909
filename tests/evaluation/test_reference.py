"""The authors' loop, restated: against steps by hand, exact mixtures, and the product on the same noise."""

import math

import pytest
import torch

from evaluation.mixtures import log_density, measured_model, random_mixture, union
from evaluation.problems import MODEL, unconditional
from evaluation.reference import Component, Operator, Settings, sample
from evaluation.ways import plan_of, sample_together
from pipelines.composition import And, Average, Method, Or, Prompt
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.kernel import Kernel
from pipelines.params import SamplingParams


def gaussian(mean, std=1.0):
    return GaussianMixture(torch.tensor([mean], dtype=torch.float64), std)


def components(*densities, count):
    return [Component(AnalyticModel(d), [""] * count) for d in densities]


def pair(dimension, spread=1.0):
    return [random_mixture(seed, dimension, spread=spread) for seed in (1, 2)]


def test_one_step_of_or_by_hand():
    """Two unit Gaussians at ±1 in one dimension, from σ = 2 to 1 and then to 0: every number from the formulas."""
    sigmas = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    chosen = Settings(Operator.OR, steps=2, temperature=3.0)
    outcome = sample(components(gaussian([1.0]), gaussian([-1.0]), count=1), [7], chosen, sigmas=sigmas)
    generator = torch.Generator().manual_seed(7)
    first, second = (float(torch.randn(1, generator=generator)) for _ in range(2))

    def scores(z, sigma):
        return [(m - z) / (1 + sigma**2) for m in (1.0, -1.0)]

    z, h = 2 * first, 2 * 2.0 * (2.0 - 1.0)
    s = scores(z, 2.0)
    d = h * (s[0] + s[1]) / 2 + math.sqrt(h) * second
    log_q = [d * si - h / 2 * si**2 for si in s]
    z = z + d
    kappa = 1 / (1 + math.exp(3 * (log_q[1] - log_q[0])))
    s = scores(z, 1.0)
    assert outcome.log_q[0].tolist() == pytest.approx(log_q, abs=1e-12)
    assert float(outcome.before[0]) == pytest.approx(z, abs=1e-12)
    # Landing: z + σ² Σ κ s.
    assert float(outcome.z[0]) == pytest.approx(z + kappa * s[0] + (1 - kappa) * s[1], abs=1e-12)


def test_and_changes_both_densities_by_the_same():
    """That is Proposition 6: increments differ by nothing but rounding, with guidance or without."""
    a, b = pair(8)
    model = AnalyticModel(unconditional(8), {"a": a, "b": b})
    for guidance in (1.0, 7.5):
        both = [Component(model, ["a"] * 5), Component(model, ["b"] * 5)]
        outcome = sample(both, range(5), Settings(Operator.AND, steps=12, guidance=guidance))
        torch.testing.assert_close(outcome.log_q[:, 0], outcome.log_q[:, 1], rtol=0, atol=1e-9)


def test_and_is_of_two():
    with pytest.raises(ValueError, match="of two components"):
        sample(components(*pair(2), gaussian([0.0, 0.0]), count=1), [0], Settings(Operator.AND, steps=2))


@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_product_takes_the_same_steps(operator, guidance):
    """The product's own sampler with the Euler–Maruyama kernel, on the same noise: two programs, one path.

    AND's weights divide by |E|², so rounding grows over the run; 1e-7 of samples of size 1 is far below any real
    difference, which is of the size of a step.
    """
    a, b = pair(6)
    model = measured_model(unconditional(6), {"a": a, "b": b})
    terms = (Prompt("a", MODEL), Prompt("b", MODEL))
    expression = {
        Operator.OR: Or(terms),
        Operator.AND: And(terms, method=Method.BALANCED),
        Operator.AVERAGE: Average(terms),
    }[operator]
    params = SamplingParams(steps=16, guidance_scale=guidance, seed=3, num_images=4, kernel=Kernel.EULER_MARUYAMA)
    (state,) = sample_together([plan_of(expression, params, {MODEL: model})], {MODEL: model}, torch.float64)
    both = [Component(model, ["a"] * 4), Component(model, ["b"] * 4)]
    outcome = sample(both, range(3, 7), Settings(operator, steps=16, guidance=guidance))
    torch.testing.assert_close(state.z, outcome.z, rtol=0, atol=1e-7)
    gained = state.log_density - state.log_density[:, :1]
    torch.testing.assert_close(gained, outcome.log_q - outcome.log_q[:, :1], rtol=0, atol=1e-6)


def final_difference_error(steps, *, as_shipped=False):
    """Estimated less exact log q_1 − log q_2 at σ_min, for OR of two mixtures in two dimensions."""
    parts = pair(2)
    outcome = sample(
        components(*parts, count=400), range(400), Settings(Operator.OR, steps=steps, as_shipped=as_shipped)
    )
    exact = [log_density(p, outcome.before, 0.03) for p in parts]
    return (outcome.log_q[:, 0] - outcome.log_q[:, 1]) - (exact[0] - exact[1])


def test_the_density_estimate_converges_and_as_shipped_does_not():
    """Euler–Maruyama's error falls with the steps; a wrong sign stays by nats at any number of them."""
    coarse, fine = (float(final_difference_error(n).square().mean().sqrt()) for n in (25, 400))
    assert fine < coarse / 2
    # Measured: 0.70 and 0.11; as shipped 5.6 and 4.6.
    assert fine < 0.4
    assert float(final_difference_error(400, as_shipped=True).square().mean().sqrt()) > 2


def test_or_draws_half_from_each_and_as_shipped_does_not():
    """Shares of 800 samples: a standard error of 0.018, so 0.07 is four of them."""
    parts = [gaussian([2.5, 0.0], 0.35), gaussian([-2.5, 0.0], 1.0)]

    def share(*, as_shipped):
        chosen = Settings(Operator.OR, steps=100, as_shipped=as_shipped)
        outcome = sample(components(*parts, count=800), range(800), chosen)
        return float((outcome.z[:, 0] > 0).double().mean())

    assert share(as_shipped=False) == pytest.approx(0.5, abs=0.07)
    assert abs(share(as_shipped=True) - 0.5) > 0.1


def test_pictures_do_not_influence_each_other():
    parts = components(*pair(3), count=3)
    together = sample(parts, [5, 6, 7], Settings(Operator.AND, steps=8))
    alone = sample(components(*pair(3), count=1), [6], Settings(Operator.AND, steps=8))
    torch.testing.assert_close(together.z[1:2], alone.z, rtol=0, atol=1e-9)


def test_more_steps_bring_or_closer_to_the_mixture():
    """In 64 dimensions ten Euler–Maruyama steps leave far too much noise; two hundred nearly none too much."""
    truth = union(*pair(64))
    exact = float(log_density(truth, truth.sample(20_000, torch.Generator().manual_seed(0)), 0.0).mean())
    errors = []
    for steps in (10, 200):
        outcome = sample(components(*pair(64), count=200), range(200), Settings(Operator.OR, steps=steps))
        errors.append(abs(float(log_density(truth, outcome.z, 0.0).mean()) - exact))
    # Standard errors are 0.6 and 0.4 nats; measured were 15.5 and 0.3.
    assert errors[1] < 2 < 8 < errors[0]
