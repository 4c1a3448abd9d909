import math

import pytest
import torch

from pipelines.errors import InvalidInputError
from pipelines.families.analytic import GaussianMixture
from pipelines.kernel import DenoisingError, Kernel, measure_denoising_error, transitions
from pipelines.noise import karras_sigmas

SIGMAS = karras_sigmas(12, 0.03, 14.6)


def gaussian_error(std):
    return SIGMAS[:-1] ** 2 * std**2 / (SIGMAS[:-1] ** 2 + std**2)


@pytest.mark.parametrize("kernel", Kernel)
def test_the_last_step_lands_on_the_denoised_estimate_without_noise(kernel):
    h, v = transitions(kernel, SIGMAS, gaussian_error(1.0))
    assert h[-1] == SIGMAS[-2] ** 2
    assert v[-1] == 0


@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_calibrated_reproduces_the_marginals_of_gaussian_data_at_any_step_size(std):
    """From z_t ~ N(0, σ_t² + s²) one step must give N(0, σ_s² + s²): exact for Gaussian data, so to rounding."""
    h, v = transitions(Kernel.CALIBRATED, SIGMAS, gaussian_error(std))
    before, after = SIGMAS[:-1] ** 2 + std**2, SIGMAS[1:] ** 2 + std**2
    shrink = 1 - h / before  # z + h s(z) with the exact score −z/(σ² + s²)
    variance = shrink**2 * before + v
    torch.testing.assert_close(variance[:-1], after[:-1], rtol=1e-12, atol=0)


def test_calibrated_of_gaussian_data_is_the_documented_formula():
    std = 0.7
    h, v = transitions(Kernel.CALIBRATED, SIGMAS, gaussian_error(std))
    expected = h * (SIGMAS[1:] ** 2 + std**2) / (SIGMAS[:-1] ** 2 + std**2)
    torch.testing.assert_close(v[:-1], expected[:-1], rtol=1e-12, atol=0)


def test_kernels_order_by_noise():
    h, v_exact = transitions(Kernel.EXACT, SIGMAS, gaussian_error(0.5))
    _, v_posterior = transitions(Kernel.POSTERIOR, SIGMAS, gaussian_error(0.5))
    _, v_calibrated = transitions(Kernel.CALIBRATED, SIGMAS, gaussian_error(0.5))
    assert (v_posterior[:-1] < v_calibrated[:-1]).all()
    assert (v_calibrated[:-1] < v_exact[:-1]).all()
    assert torch.equal(h[:-1], v_exact[:-1])


def test_euler_maruyama_is_the_reference_s_step():
    h, v = transitions(Kernel.EULER_MARUYAMA, SIGMAS, gaussian_error(1.0))
    expected = 2 * SIGMAS[:-1] * (SIGMAS[:-1] - SIGMAS[1:])
    torch.testing.assert_close(h[:-1], expected[:-1])
    torch.testing.assert_close(v[:-1], expected[:-1])


def test_measured_error_is_the_exact_one():
    """m(σ) = s²σ²/(s² + σ²) for Gaussian data; 40,000 × 4 squared errors know it to 1 % (3 standard errors)."""
    std = 0.6
    data = GaussianMixture(torch.zeros(1, 4), std)
    levels = torch.tensor([0.05, 0.3, 1.0, 5.0], dtype=torch.float64)
    clean = data.sample(40_000, torch.Generator().manual_seed(0))
    curve = measure_denoising_error(data.denoised, clean, levels, torch.Generator().manual_seed(1))
    expected = levels**2 * std**2 / (levels**2 + std**2)
    assert torch.tensor(curve.values, dtype=torch.float64).tolist() == pytest.approx(expected.tolist(), rel=0.011)


def test_curve_interpolates_in_log_sigma_and_holds_its_ends():
    curve = DenoisingError((0.1, 10.0), (1.0, 3.0))
    told = curve(torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64))
    assert told.tolist() == pytest.approx([1, 1, 2, 3, 3])


def test_gaussian_fallback_is_its_formula():
    curve = DenoisingError.gaussian(0.5, 0.03, 14.6)
    at = torch.tensor([0.03, 0.5, 14.6], dtype=torch.float64)
    # Linear interpolation between 64 points in log σ.
    assert curve(at).tolist() == pytest.approx((at**2 * 0.25 / (at**2 + 0.25)).tolist(), rel=5e-3)


@pytest.mark.parametrize(
    ("sigmas", "values"),
    [
        ((1.0,), (1.0,)),
        ((1.0, 1.0), (1.0, 1.0)),
        ((1.0, 2.0), (1.0, -1.0)),
        ((0.0, 1.0), (1, 1)),
        ((1.0, 2.0), (1.0, float("nan"))),
    ],
)
def test_a_curve_without_meaning_is_refused(sigmas, values):
    with pytest.raises(InvalidInputError):
        DenoisingError(sigmas, values)


def test_deterministic_adds_no_noise():
    h, v = transitions(Kernel.DETERMINISTIC, SIGMAS, gaussian_error(1.0))
    assert (v == 0).all()
    assert math.isclose(float(h[0]), float(SIGMAS[0] * (SIGMAS[0] - SIGMAS[1])))
