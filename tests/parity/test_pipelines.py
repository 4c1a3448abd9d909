"""Whole pipelines with the same weights: ours against diffusers', latents to 1e-4 and pixels to ±1."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from pipelines.composition import Prompt
from pipelines.draws import NoiseSource
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.unconditional import Unconditional
from pipelines.kernel import Kernel
from pipelines.networks import denoise
from pipelines.noise import karras_sigmas
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from tests.pipelines.families import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=tiny.PREDICTIONS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd") / request.param
    theirs = tiny.stable_diffusion(folder, prediction=request.param)
    return StableDiffusion.load(folder, CPU, torch.float32), theirs, request.param


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("width", "height", "images"), [(16, 16, 1), (24, 16, 3)])
def test_a_deterministic_run_equals_diffusers_euler(pair, guidance, width, height, images):
    ours, theirs, kind = pair
    steps = 6
    params = SamplingParams(
        steps=steps,
        guidance_scale=guidance,
        seed=3,
        num_images=images,
        width=width,
        height=height,
        kernel=Kernel.DETERMINISTIC,
        negative_prompt="a black square",
    )
    # diffusers' own Karras grid, made from the same ends.
    theirs.scheduler = EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    sigmas = karras_sigmas(steps, ours.card.sigma_min, ours.card.sigma_max)
    noise = NoiseSource(params, ours.card.sample_shape(width, height)).draw().normals
    # The pipeline multiplies by its scheduler's initial σ, √(σ_max² + 1) or σ_max.
    theirs.scheduler.set_timesteps(sigmas=sigmas.tolist())
    latents = noise * sigmas[0].float() / theirs.scheduler.init_noise_sigma
    options = {
        "prompt": ["a red circle"] * images,
        "negative_prompt": ["a black square"] * images,
        "guidance_scale": guidance,
        "sigmas": sigmas.tolist(),
        "width": width,
        "height": height,
    }
    expected = theirs(**options, latents=latents, output_type="latent").images
    got = sample(Prompt("a red circle", "sd"), params, {"sd": ours}).z
    scale = theirs.vae.config.scaling_factor
    assert scale == pytest.approx(0.18215)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    pixels = theirs(**options, latents=latents, output_type="pt").images
    assert (ours.decode(got) - pixels).abs().max() * 255 <= 1


def test_embeddings_equal(pair):
    ours, theirs, _ = pair
    texts = ["a red circle", "", "something unknown"]
    expected, _ = theirs.encode_prompt(texts, CPU, 1, False)
    torch.testing.assert_close(ours.encode_prompts(texts)["encoder_hidden_states"], expected, rtol=0, atol=1e-6)


def test_the_autoencoder_goes_both_ways(pair):
    ours, theirs, _ = pair
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    expected = theirs.vae.encode(images * 2 - 1).latent_dist.mean * theirs.vae.config.scaling_factor
    latents = ours.encode(images)
    torch.testing.assert_close(latents, expected)
    decoded = theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample
    torch.testing.assert_close(ours.decode(latents), (decoded / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_unconditional_denoises_as_diffusers_scheduler_says(tmp_path, channels):
    theirs = tiny.unconditional(tmp_path / "ddpm", channels=channels)
    ours = Unconditional.load(tmp_path / "ddpm", CPU, torch.float32)
    x = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    cumulative = theirs.scheduler.alphas_cumprod
    for timestep in (999, 500, 0):
        with torch.no_grad():
            output = theirs.unet(x, timestep).sample
        expected = (x - (1 - cumulative[timestep]).sqrt() * output) / cumulative[timestep].sqrt()
        sigma = ((1 - cumulative[timestep]) / cumulative[timestep]).sqrt().double()
        z = x / cumulative[timestep].sqrt()
        got = denoise(ours, z, sigma.expand(3), {})
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(sigma) + 1e-5)
    assert ours.decode(x).shape == (3, 3, 8, 8)
