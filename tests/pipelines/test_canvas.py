"""Painting on a known picture, where mixtures tell the truth."""

import math

import pytest
import torch

from pipelines.canvas import Canvas
from pipelines.composition import And, Average, Not, Or, Prompt
from pipelines.draws import NoiseSource
from pipelines.errors import InvalidInputError
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.kernel import Kernel
from pipelines.networks import evaluate
from pipelines.params import SamplingParams
from pipelines.sampler import prepare, sample, step
from tests.pipelines.mixtures import balanced, plan_of

A, B = Prompt("", "a"), Prompt("", "b")
EXPRESSIONS = [A, Or((A, B)), And((A, B)), balanced((A, B)), Average((A, B)), And((A, Not(Or((A, B)), 0.5)))]


def mixture(seed, dimension=2, modes=3):
    g = torch.Generator().manual_seed(seed)
    return GaussianMixture(torch.randn(modes, dimension, generator=g, dtype=torch.float64) * 1.5, 0.4)


def models(dimension=2):
    return {name: AnalyticModel(mixture(seed, dimension)) for seed, name in enumerate("ab")}


def params(**given):
    return SamplingParams(**{"steps": 20, "guidance_scale": 1.0, "num_images": 5, "seed": 3} | given)


CLEAN = torch.tensor([[0.7, -0.3]])


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_the_mask_keeps_is_kept_exactly(expression):
    kept = sample(expression, params(), models(), canvas=Canvas(CLEAN, torch.tensor([[1.0, 0.0]]))).z
    assert torch.equal(kept[:, 1], CLEAN[:, 1].expand(5))
    assert kept[:, 0].std() > 0
    whole = sample(expression, params(), models(), canvas=Canvas(CLEAN, torch.zeros(1, 2))).z
    assert torch.equal(whole, CLEAN.expand(5, -1))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_at_strength_one_a_picture_that_is_not_kept_changes_nothing(expression):
    without = sample(expression, params(), models())
    for canvas in (Canvas(CLEAN), Canvas(CLEAN, torch.ones(1, 2))):
        with_it = sample(expression, params(), models(), canvas=canvas)
        torch.testing.assert_close(with_it.z, without.z)
        torch.testing.assert_close(with_it.log_density, without.log_density)


@pytest.mark.parametrize("kernel", [Kernel.CALIBRATED, Kernel.POSTERIOR, Kernel.EULER_MARUYAMA])
def test_the_kept_part_is_the_picture_noised_at_every_level(kernel):
    """z ~ N(x, σ²): the forward process's own law, whatever variance the kernel has."""
    asked = params(num_images=4000, kernel=kernel)
    source = NoiseSource(asked, (2,))
    canvas = Canvas(CLEAN, torch.tensor([[1.0, 0.0]]))
    held = models()
    state = prepare(plan_of(A, asked, held, on_canvas=True), held, source.draw(), canvas=canvas)
    while not state.done:
        sigma = float(state.schedule.sigmas[state.index])
        seen = (state.z[:, 1] - CLEAN[0, 1]) / sigma
        # Four standard errors of a mean and of a standard deviation of 4,000.
        assert abs(float(seen.mean())) < 4 / math.sqrt(4000)
        assert float(seen.std()) == pytest.approx(1, abs=4 / math.sqrt(8000))
        (state,) = step([state], evaluate([state], held), [source.draw()])


def test_where_parts_are_independent_the_painted_one_follows_its_own_density():
    """p(x, y) = p(x) p(y): painting x beside a known y is sampling p(x), and y says nothing of it."""
    line = torch.tensor([[-2.0], [1.0]], dtype=torch.float64)
    square = torch.cartesian_prod(line[:, 0], torch.tensor([-1.0, 1.5], dtype=torch.float64))
    model = {"m": AnalyticModel(GaussianMixture(square, 0.3))}
    asked = params(num_images=3000, steps=40)
    canvas = Canvas(torch.tensor([[0.0, 1.5]]), torch.tensor([[1.0, 0.0]]))
    painted = sample(Prompt("", "m"), asked, model, canvas=canvas).z[:, 0].double()
    alone = sample(Prompt("", "m"), asked, {"m": AnalyticModel(GaussianMixture(line, 0.3))}).z[:, 0].double()
    exact = GaussianMixture(line, 0.3).sample(3000, torch.Generator().manual_seed(0))[:, 0]
    for other in (alone, exact):
        distance = (painted.sort().values - other.sort().values).abs().mean()
        # Two samples of 3,000 from it are 0.04 to 0.06 apart: mostly by how many fell to each mode.
        assert distance < 0.12


def test_steps_and_beginning_follow_the_strength():
    held = models()
    for strength, calls in ((1.0, 20), (0.5, 10), (0.29, 5), (0.05, 1), (0.04, 0), (0.0, 0)):
        asked = params(strength=strength)
        assert asked.calls == calls
        noise = NoiseSource(asked, (2,)).draw()
        state = prepare(plan_of(A, asked, held, on_canvas=True), held, noise, canvas=Canvas(CLEAN))
        assert state.schedule.steps == calls
        sigma = float(prepare(plan_of(A, params(), held), held, noise).schedule.sigmas[20 - calls])
        expected = sigma * noise.normals + (CLEAN if strength < 1 else 0)
        torch.testing.assert_close(state.z, expected)
    assert SamplingParams(steps=100, strength=0.29).calls == 29


def test_strength_zero_gives_the_picture_back():
    nothing = sample(Or((A, B)), params(strength=0.0), models(), canvas=Canvas(CLEAN))
    assert torch.equal(nothing.z, CLEAN.expand(5, -1))
    assert nothing.log_density.isnan().all()


def test_little_strength_stays_near_and_much_goes_far():
    near, far = (
        (sample(A, params(strength=s, num_images=64), models(), canvas=Canvas(CLEAN)).z - CLEAN).norm(dim=1).mean()
        for s in (0.3, 0.9)
    )
    assert near < far / 2


def test_strength_without_a_picture_is_refused():
    with pytest.raises(InvalidInputError, match="needs an image to start from") as refused:
        sample(A, params(strength=0.5), models())
    assert refused.value.field == ("strength",)


@pytest.mark.parametrize("dimension", [2, 16])
def test_the_density_of_a_picture_approaches_the_truth(dimension):
    """log q at σ_min, the nearer the more steps: of the component that explains it, and of the one that does not."""
    held = models(dimension)
    clean = mixture(0, dimension).sample(1, torch.Generator().manual_seed(1)).float()
    sigma = torch.full((1,), held["a"].card.sigma_min, dtype=torch.float64)
    true = torch.stack([model._densities[""].log_density(clean, sigma) for model in held.values()], 1)[0]
    gaps = []
    for steps in (25, 100, 400):
        asked = params(steps=steps, num_images=64, kernel=Kernel.CALIBRATED)
        densities = sample(Average((A, B)), asked, held, canvas=Canvas(clean, retrace=True)).log_density
        error = densities.std(0) / math.sqrt(64)
        gaps.append((true - densities.mean(0)).abs())
    # An error of first order falls to a sixteenth.
    assert (gaps[2] < gaps[0] / 8 + 4 * error).all()
    assert (gaps[2] < 0.01 * true.abs() + 4 * error).all()


def test_retracing_leads_back_to_the_picture_whatever_the_components_say():
    held = models()
    plan = plan_of(Average((A, B)), params(), held, on_canvas=True, retrace=True)
    state = prepare(plan, held, NoiseSource(params(), (2,)).draw(), canvas=Canvas(CLEAN, retrace=True))
    source = NoiseSource(params(seed=9), (2,))
    for _ in range(19):
        (state,) = step([state], evaluate([state], held), [source.draw()])
    # Before the last step: the picture with noise of the last level over it, six standard deviations at most.
    assert ((state.z - CLEAN).abs() < 6 * float(state.schedule.sigmas[19])).all()
