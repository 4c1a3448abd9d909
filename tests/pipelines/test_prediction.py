import pytest
import torch

from pipelines.prediction import Prediction, from_denoised, network_input, to_denoised, to_noise


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
def test_a_perfect_network_gives_the_noise(kind, noised):
    clean, noise, sigma, z = noised
    output = ideal_output(kind, clean, noise, sigma)
    # σ is 0.03 at least, by which a sample prediction is divided.
    torch.testing.assert_close(to_noise(kind, output, z, sigma), noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", Prediction)
def test_the_noise_and_the_clean_data_of_any_output_agree(kind, noised):
    """ε̂ = (z − x̂0)/σ."""
    _, _, sigma, z = noised
    output = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = (z - to_denoised(kind, output, z, sigma)) / sigma[:, None, None]
    torch.testing.assert_close(to_noise(kind, output, z, sigma), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", [Prediction.EPSILON, Prediction.V, Prediction.FLOW])
def test_at_high_noise_predictions_keep_the_digits_in_which_they_differ(kind):
    """Two float32 outputs that differ in the fourth digit, at σ = 14.6: their ε̂ differ as in float64, to 1 %.

    By way of x̂0 = z − σ ε̂ the difference would be rounded to the digits of z, fifteen times as large.
    """
    g = torch.Generator().manual_seed(0)
    sigma = torch.full((64,), 14.6)
    z, output, change = torch.randn(3, 64, 50, generator=g)
    outputs = [14.6 * z, output, output + 1e-4 * change]
    z, *two = outputs
    exact = to_noise(kind, two[1].double(), z.double(), sigma.double())
    exact = exact - to_noise(kind, two[0].double(), z.double(), sigma.double())
    single = to_noise(kind, two[1], z, sigma) - to_noise(kind, two[0], z, sigma)
    assert (single - exact).norm() < 0.01 * exact.norm()


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
