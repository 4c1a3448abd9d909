"""Exact mixtures to test samplers against, and the loop that runs them in float64."""

import math

import torch

from pipelines.calibration import calibration_levels
from pipelines.composition import And, Method
from pipelines.draws import Draw, NoiseSource
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.kernel import measure_denoising_error
from pipelines.networks import evaluate
from pipelines.plan import make_plan
from pipelines.sampler import prepare, step

SIGMA_MIN = 0.03


def mixture(seed, dimension=64, modes=5, std=0.35):
    """A random mixture of unit spread."""
    means = torch.randn(modes, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return GaussianMixture(means, std)


def model(density, **options):
    """The mixture as a model with its measured denoising error."""
    plain = AnalyticModel(density, **options)
    clean = density.sample(4000, torch.Generator().manual_seed(3))
    error = measure_denoising_error(
        density.denoised, clean, calibration_levels(plain), torch.Generator().manual_seed(4)
    )
    return AnalyticModel(density, error=error, **options)


def union(*densities):
    """The even mixture of several."""
    means = torch.cat([d.means for d in densities])
    return GaussianMixture(means, torch.cat([d.variances for d in densities]).sqrt())


def product_of(one, other, background):
    """one · other / background, again a mixture; ``background`` is one Gaussian, wider than the parts."""
    (middle,), (wide,) = background.means, background.variances
    means, stds, logs = [], [], []
    for m, s, p in zip(one.means, one.variances, one.log_weights, strict=True):
        for n, t, q in zip(other.means, other.variances, other.log_weights, strict=True):
            precision = 1 / s + 1 / t - 1 / wide
            mean = (m / s + n / t - middle / wide) / precision
            squares = (m @ m) / s + (n @ n) / t - (middle @ middle) / wide - precision * (mean @ mean)
            means.append(mean)
            stds.append(precision**-0.5)
            logs.append(p + q - squares / 2 + one.dimension / 2 * (wide / (s * t * precision)).log())
    return GaussianMixture(torch.stack(means), torch.stack(stds), torch.stack(logs).softmax(0))


def crowd_draws(params, dimension, seed=0):
    """Draws for many pictures from one generator: quicker than one for each where no picture is told apart."""
    groups = params.num_images * params.candidates
    generator = torch.Generator().manual_seed(seed)
    return lambda: Draw(
        torch.randn(params.samples, dimension, generator=generator),
        torch.rand(groups, generator=generator, dtype=torch.float64),
    )


def balanced(terms, lifts=()):
    """The paper's AND."""
    return And(terms, lifts, Method.BALANCED)


def plan_of(expression, params, models, **options):
    """The plan of a request to loaded models."""
    return make_plan(expression, params, {name: model.card for name, model in models.items()}, **options)


def run(expression, params, models, dtype=torch.float64, draw=None):
    """Sample in float64; (all states from the first to the last).

    ``draw`` gives the randomness of each step; None for the request's own.
    """
    plan = plan_of(expression, params, models)
    draw = draw or NoiseSource(params, plan.shape).draw
    first = draw()
    states = [prepare(plan, models, first._replace(normals=first.normals.to(dtype)))]
    while not states[-1].done:
        states += step(states[-1:], evaluate(states[-1:], models), [draw()])
    return states


def run_crowd(expression, params, models):
    """:func:`run` for many pictures of which none is told apart: one generator draws for all, which is quicker."""
    (dimension,) = {model.card.space.channels for model in models.values()}
    return run(expression, params, models, draw=crowd_draws(params, dimension, params.seed))


def log_density(density, z, sigma=SIGMA_MIN):
    """log q_σ of samples."""
    return density.log_density(z, torch.full((len(z),), sigma, dtype=torch.float64))


def sliced_w2(x, y, projections=200):
    """Sliced 2-Wasserstein distance of two samples of one size."""
    directions = torch.randn(projections, x.shape[1], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    a, b = ((s.double() @ directions.T).sort(dim=0).values for s in (x, y))
    return math.sqrt((a - b).square().mean())
