import pytest
import torch

from pipelines.prediction import Prediction, from_denoised, network_input, to_denoised


@pytest.fixture
def noised():
    """Clean data, noise, levels, and z = x_0 + σ ε; float64."""
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(16, 3, 5, generator=g, dtype=torch.float64)
    noise = torch.randn(16, 3, 5, generator=g, dtype=torch.float64)
    sigma = torch.logspace(-1.5, 1.2, 16, dtype=torch.float64)
    return clean, noise, sigma, clean + sigma[:, None, None] * noise


def ideal_output(kind, clean, noise, sigma):
    """What a perfect network puts out, from each parametrisation's own definition."""
    level = sigma[:, None, None]
    alpha, beta = 1 / (1 + level**2).sqrt(), level / (1 + level**2).sqrt()
    return {
        Prediction.EPSILON: noise,
        Prediction.V: alpha * noise - beta * clean,
        Prediction.SAMPLE: clean,
        Prediction.FLOW: noise - clean,
    }[kind]


@pytest.mark.parametrize("kind", Prediction)
def test_a_perfect_network_gives_the_clean_data(kind, noised):
    clean, noise, sigma, z = noised
    output = ideal_output(kind, clean, noise, sigma)
    torch.testing.assert_close(to_denoised(kind, output, z, sigma), clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", Prediction)
@pytest.mark.parametrize("other", Prediction)
def test_round_trips_between_all_types(kind, other, noised):
    clean, noise, sigma, z = noised
    output = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = from_denoised(other, to_denoised(kind, output, z, sigma), z, sigma)
    back = from_denoised(kind, to_denoised(other, there, z, sigma), z, sigma)
    torch.testing.assert_close(back, output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", Prediction)
def test_network_input_is_the_noised_sample_of_its_own_path(kind, noised):
    clean, noise, sigma, z = noised
    level = sigma[:, None, None]
    if kind is Prediction.FLOW:
        time = level / (1 + level)
        expected = (1 - time) * clean + time * noise
    else:
        expected = (clean + level * noise) / (1 + level**2).sqrt()
    torch.testing.assert_close(network_input(kind, z, sigma), expected, rtol=1e-12, atol=1e-12)
