import pytest
import torch

from pipelines.calibration import LEVELS, calibrate_on_own_samples, calibration_levels
from pipelines.families.analytic import AnalyticModel, GaussianMixture


def test_levels_span_what_the_model_knows():
    model = AnalyticModel(GaussianMixture(torch.zeros(1, 2), 1.0), sigma_min=0.1, sigma_max=10)
    levels = calibration_levels(model)
    assert len(levels) == LEVELS
    assert levels[0].item() == pytest.approx(0.1)
    assert levels[-1].item() == pytest.approx(10)


def test_a_model_s_own_samples_measure_its_error():
    """For Gaussian data of standard deviation s: m(σ) = s²σ²/(s² + σ²). 1,500 × 4 squared errors know it to 1.8 %."""
    std = 0.5
    density = GaussianMixture(torch.zeros(1, 4), std)
    model = AnalyticModel(density, prompts={"p": density}, std=std)
    curve = calibrate_on_own_samples(model, ["", "p"], images=1500, steps=40)
    sigmas = torch.tensor(curve.sigmas)
    expected = sigmas**2 * std**2 / (sigmas**2 + std**2)
    assert list(curve.values) == pytest.approx(expected.tolist(), rel=0.08)
