"""Exact mixtures to test samplers against, and the loop that runs them in float64."""

import math

import torch

from pipelines.calibration import calibration_levels
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.kernel import measure_denoising_error
from pipelines.sampler import NoiseSource, evaluate, prepare, step

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


def run(expression, params, models, dtype=torch.float64):
    """Sample in float64; (all states from the first to the last)."""
    dimension = next(iter(models.values())).card.space.channels
    source = NoiseSource(params, (dimension,))
    states = [prepare(expression, params, models, source.draw().to(dtype))]
    while not states[-1].done:
        states += step(states[-1:], evaluate(states[-1:], models), [source.draw()])
    return states


def log_density(density, z, sigma=SIGMA_MIN):
    """log q_σ of samples."""
    return density.log_density(z, torch.full((len(z),), sigma, dtype=torch.float64))


def sliced_w2(x, y, projections=200):
    """Sliced 2-Wasserstein distance of two samples of one size."""
    directions = torch.randn(projections, x.shape[1], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    a, b = ((s.double() @ directions.T).sort(dim=0).values for s in (x, y))
    return math.sqrt((a - b).square().mean())
