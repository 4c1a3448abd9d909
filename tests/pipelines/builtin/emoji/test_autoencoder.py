"""The written encoder against the plain matrix product, and its latents against the definition of components."""

import numpy as np
import pytest
import torch

from pipelines.builtin.emoji.autoencoder import (
    CHANNELS,
    new_autoencoder,
    peak_signal_to_noise,
    principal_components,
    read_components,
    reconstruction_loss,
    train_decoder,
)
from pipelines.builtin.emoji.pictures import on_ground, read_pictures
from pipelines.builtin.fitting import Plan
from tests.pipelines.builtin.emoji.drawn import draw_data


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    names = ("monkey", "dog", "fox", "cat", "lion", "tiger", "horse", "unicorn")
    return read_pictures(draw_data(tmp_path_factory.mktemp("data"), names), names)


@pytest.fixture(scope="module")
def images(pictures):
    return on_ground(pictures, torch.tensor([1.0, 0.95, 0.9]))


@pytest.fixture(scope="module")
def components(images):
    return principal_components(images)


def latents_by_hand(images, components):
    """z = matrix·patch + offset, patch by patch."""
    pixels = images.double().numpy()
    matrix, offset = components.matrix.double().numpy(), components.offset.double().numpy()
    out = np.empty((len(pixels), CHANNELS, 8, 8))
    for row in range(8):
        for column in range(8):
            patch = pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(len(pixels), -1)
            out[:, :, row, column] = patch @ matrix.T + offset
    return torch.from_numpy(out).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_encoder_s_convolutions_compute_the_components(images, components, dtype):
    autoencoder = new_autoencoder(components).to(dtype)
    with torch.no_grad():
        posterior = autoencoder.encode(images.to(dtype)).latent_dist
    expected = latents_by_hand(images, components)
    error = posterior.mean.float() - expected
    # 32 of a quadrant's 48 directions are kept, the normalisation's constants are 64 and not infinite, and float16 has
    # 11 bits: a few thousandths of the largest latent at worst, and far less as a rule.
    assert error.abs().max() < 0.01 * expected.abs().max()
    assert error.std() < 0.003 * expected.std()
    # What is drawn from the posterior is its mean, near enough.
    assert posterior.std.max() < 0.01


def test_components_called_on_pictures_are_the_same_product(images, components):
    torch.testing.assert_close(components(images), latents_by_hand(images, components), rtol=1e-4, atol=1e-4)


def test_latents_are_uncorrelated_half_whitened_and_of_unit_variance(images, components):
    z = components(images).permute(1, 0, 2, 3).reshape(CHANNELS, -1).double()
    covariance = torch.cov(z)
    variances = covariance.diagonal()
    assert z.mean(1).abs().max() < 1e-4
    assert (covariance - variances.diag()).abs().max() < 1e-4
    assert variances.mean() == pytest.approx(1, abs=1e-4)
    # Independent of the code: the patches' own spectrum, by singular values.
    patches = torch.nn.functional.pixel_unshuffle(images, 8).permute(0, 2, 3, 1).reshape(-1, 192).double()
    deviations = torch.linalg.svdvals(patches - patches.mean(0))[:CHANNELS]
    torch.testing.assert_close(variances / variances[0], deviations / deviations[0], rtol=1e-3, atol=1e-5)


def test_the_mean_of_two_latents_is_of_the_mean_picture(images, components):
    autoencoder = new_autoencoder(components)
    with torch.no_grad():
        a, b, middle = (
            autoencoder.encode(x[None]).latent_dist.mean for x in (images[0], images[1], (images[0] + images[1]) / 2)
        )
    assert ((a + b) / 2 - middle).abs().max() < 0.02
    assert (a - b).abs().max() > 1


def test_what_was_written_is_read_back(components):
    matrix, offset = read_components(new_autoencoder(components))
    # What the 32 directions kept of a quadrant's 48 leave out is a per cent or two of these drawn pictures' components.
    assert (matrix - components.matrix).norm() < 0.03 * components.matrix.norm()
    assert (offset - components.offset).abs().max() < 0.01


def test_a_decoder_learns_and_the_encoder_stays(pictures, images, components, tmp_path):
    torch.manual_seed(0)
    autoencoder = new_autoencoder(components)
    before = {name: value.clone() for name, value in autoencoder.encoder.state_dict().items()}

    def loss():
        with torch.no_grad():
            return float(reconstruction_loss(autoencoder.decode(components(images)).sample, images))

    untrained = loss()
    plan = Plan(steps=12, batch=4, learning_rate=2e-3, warmup=2, ema_decay=0.5)
    unmirrored = torch.zeros(len(pictures), dtype=torch.bool)
    train_decoder(autoencoder, components, pictures, unmirrored, plan, tmp_path / "decoder.pt", 0)
    assert loss() < 0.8 * untrained
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.encoder.state_dict().items())


def test_the_signal_to_noise_ratio_is_the_textbook_s(pictures, components):
    autoencoder = new_autoencoder(components)
    with torch.no_grad():
        white = on_ground(pictures, torch.ones(3))
        decoded = autoencoder.decode(autoencoder.encode(white).latent_dist.mean).sample
    as_bytes = [((x.double().clamp(-1, 1) + 1) * 127.5).numpy() for x in (white, decoded)]
    error = ((as_bytes[0] - as_bytes[1]) ** 2).mean(axis=(1, 2, 3))
    expected = 20 * np.log10(255) - 10 * np.log10(error)
    assert peak_signal_to_noise(autoencoder, pictures).numpy() == pytest.approx(expected, abs=0.01)
