"""Every family with the same weights: ours against diffusers' own pipeline, latents to 1e-4 and pixels to ±1."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    PixArtAlphaPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from pipelines.canvas import Canvas
from pipelines.card import Guidance
from pipelines.composition import And, Method, Prompt
from pipelines.draws import NoiseSource
from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.families.flow_matching import Flux, StableDiffusion3
from pipelines.families.pixart import PixArt, PixArtAlpha
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.stable_diffusion_xl import StableDiffusionXL
from pipelines.kernel import Kernel
from pipelines.model import LoadOptions
from pipelines.networks import denoise
from pipelines.noise import Grid, flow_time, karras_sigmas
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from tests.pipelines.families import tiny

CPU = torch.device("cpu")
STEPS = 5
FAMILIES = {
    "sd-v-zero-snr": (lambda f: tiny.stable_diffusion(f, prediction="v_prediction", zero_snr=True), StableDiffusion),
    "sdxl": (tiny.stable_diffusion_xl, StableDiffusionXL),
    "sd3": (tiny.stable_diffusion_3, StableDiffusion3),
    "sd3-without-t5": (lambda f: tiny.stable_diffusion_3(f, with_t5=False), StableDiffusion3),
    "pixart-sigma": (tiny.pixart, PixArt),
    "pixart-alpha": (partial(tiny.pixart, kind=PixArtAlphaPipeline), PixArtAlpha),
    "flux": (tiny.flux, Flux),
    "flux-schnell": (lambda f: tiny.flux(f, distilled=False), Flux),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    make, family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family") / request.param
    theirs = make(folder)
    return family.load(folder, CPU, torch.float32), theirs


def params_of(ours, guidance, width=16, height=16, images=1, negative="a black square"):
    classifier_free = ours.card.guidance is Guidance.CLASSIFIER_FREE
    if ours.card.guidance is Guidance.NONE and guidance != 1:
        pytest.skip("knows no guidance")
    return SamplingParams(
        steps=STEPS,
        guidance_scale=guidance,
        seed=3,
        num_images=images,
        width=width,
        height=height,
        kernel=Kernel.DETERMINISTIC,
        negative_prompt=negative if classifier_free and guidance != 1 else "",
    )


def in_their_coordinates(ours, theirs, noise, sigmas):
    """Their pipeline's ``latents`` and ``sigmas`` for a run from ours' noise over ours' grid."""
    if isinstance(ours, StableDiffusion3 | Flux):
        time = flow_time(sigmas[:-1])
        # The pipeline shifts the times that it is given; let it shift to these.
        theirs.scheduler = theirs.scheduler.from_config(theirs.scheduler.config, shift=1.0, use_dynamic_shifting=False)
        latents = noise * float(time[0])
        if isinstance(ours, Flux):
            latents = theirs._pack_latents(latents, *noise.shape[:2], *noise.shape[2:])
        return latents, time.tolist()
    theirs.scheduler = EulerDiscreteScheduler.from_config(theirs.scheduler.config, rescale_betas_zero_snr=False)
    theirs.scheduler.set_timesteps(sigmas=sigmas.tolist())
    return noise * sigmas[0].float() / theirs.scheduler.init_noise_sigma, sigmas.tolist()


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("width", "height", "images"), [(16, 16, 1), (24, 16, 3)])
def test_a_deterministic_run_equals_diffusers(pair, guidance, width, height, images):
    ours, theirs = pair
    if theirs.scheduler.config.get("rescale_betas_zero_snr"):
        pytest.skip("diffusers' Euler has another table at zero terminal SNR; see the test of single forwards")
    params = params_of(ours, guidance, width, height, images)
    shape = ours.card.sample_shape(width, height)
    if ours.card.grid is Grid.OWN:
        sigmas = ours.own_sigmas(STEPS, shape)
    else:
        sigmas = karras_sigmas(STEPS, ours.card.sigma_min, ours.card.sigma_max)
    noise = NoiseSource(params, shape).draw().normals
    latents, their_sigmas = in_their_coordinates(ours, theirs, noise, sigmas)
    options = {
        "prompt": ["a red circle"] * images,
        "guidance_scale": guidance,
        "sigmas": their_sigmas,
        "width": width,
        "height": height,
        "latents": latents,
    }
    if params.negative_prompt:
        options["negative_prompt"] = [params.negative_prompt] * images
    if isinstance(ours, PixArt):
        options |= {"use_resolution_binning": False, "clean_caption": False}
    expected = theirs(**options, output_type="latent").images
    if isinstance(ours, Flux):
        expected = theirs._unpack_latents(expected, height, width, theirs.vae_scale_factor)
    got = sample(Prompt("a red circle", "m"), params, {"m": ours}).z
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    pixels = theirs(**options, output_type="pt").images
    assert (ours.decode(got) - pixels).abs().max() * 255 <= 1


EDITORS = {
    StableDiffusion: StableDiffusionImg2ImgPipeline,
    StableDiffusionXL: StableDiffusionXLImg2ImgPipeline,
    StableDiffusion3: StableDiffusion3Img2ImgPipeline,
    Flux: FluxImg2ImgPipeline,
}


@pytest.fixture(scope="module", params=["sd", *(name for name in FAMILIES if not name.startswith("pixart"))])
def editor(request, tmp_path_factory):
    """A model and diffusers' image-to-image pipeline of the same weights."""
    make, family = FAMILIES.get(request.param, (tiny.stable_diffusion, StableDiffusion))
    folder = tmp_path_factory.mktemp("editor") / request.param
    parts = dict(make(folder).components)
    if family is StableDiffusion:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    return family.load(folder, CPU, torch.float32), EDITORS[family](**parts)


@pytest.mark.parametrize("strength", [0.6, 0.2])
def test_image_to_image_equals_diffusers(editor, strength):
    ours, theirs = editor
    if theirs.scheduler.config.get("rescale_betas_zero_snr"):
        pytest.skip("diffusers' Euler has another table at zero terminal SNR; see the test of single forwards")
    width, height = 24, 16
    params = replace(params_of(ours, 5.0 if ours.card.guidance is not Guidance.NONE else 1.0), strength=strength)
    params = replace(params, width=width, height=height)
    shape = ours.card.sample_shape(width, height)
    if ours.card.grid is Grid.OWN:
        sigmas = ours.own_sigmas(STEPS, shape)
    else:
        sigmas = karras_sigmas(STEPS, ours.card.sigma_min, ours.card.sigma_max)
    noise = NoiseSource(params, shape).draw().normals
    clean = ours.encode(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)))
    _, their_sigmas = in_their_coordinates(ours, theirs, noise, sigmas)
    options = {
        "prompt": ["a red circle"],
        "image": clean,
        "strength": strength,
        "guidance_scale": params.guidance_scale,
        "sigmas": their_sigmas,
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(params.seed),
        "output_type": "latent",
    }
    if isinstance(ours, StableDiffusion3 | Flux):
        options |= {"width": width, "height": height}
    if params.negative_prompt:
        options["negative_prompt"] = [params.negative_prompt]
    expected = theirs(**options).images
    if isinstance(ours, Flux):
        expected = theirs._unpack_latents(expected, height, width, theirs.vae_scale_factor)
    got = sample(Prompt("a red circle", "m"), params, {"m": ours}, canvas=Canvas(clean)).z
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_autoencoder_goes_both_ways(pair):
    ours, theirs = pair
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    config = theirs.vae.config
    shift = config.get("shift_factor") or 0
    expected = (theirs.vae.encode(images * 2 - 1).latent_dist.mean - shift) * config.scaling_factor
    latents = ours.encode(images)
    torch.testing.assert_close(latents, expected)
    decoded = theirs.vae.decode(latents / config.scaling_factor + shift).sample
    torch.testing.assert_close(ours.decode(latents), (decoded / 2 + 0.5).clamp(0, 1))


def test_rows_do_not_depend_on_their_company(pair):
    ours, _ = pair
    g = torch.Generator().manual_seed(0)
    z, sigma = torch.randn(3, 4, 8, 8, generator=g) * 3, torch.tensor([14.0, 1.0, 0.05])
    condition = dict(ours.encode_prompts(["a cat", "", "a red circle"]))
    if ours.card.guidance is Guidance.DISTILLED:
        condition["guidance"] = torch.tensor([1.0, 3.5, 7.0])
    together = ours.predict_noise(z, sigma, condition)
    for i, text in enumerate(["a cat", "", "a red circle"]):
        alone = dict(ours.encode_prompts([text]))
        torch.testing.assert_close(alone["encoder_hidden_states"], condition["encoder_hidden_states"][i : i + 1])
        row = {key: value[i : i + 1] for key, value in condition.items()}
        torch.testing.assert_close(
            ours.predict_noise(z[i : i + 1], sigma[i : i + 1], row), together[i : i + 1], rtol=1e-4, atol=1e-4
        )


def test_an_absent_negative_prompt_is_zeros_in_xl(tmp_path):
    theirs = tiny.stable_diffusion_xl(tmp_path / "xl")
    ours = StableDiffusionXL.load(tmp_path / "xl", CPU, torch.float32)
    states, negative, pooled, negative_pooled = theirs.encode_prompt(["a cat"], device=CPU)
    condition = ours.encode_prompts(["a cat", ""])
    torch.testing.assert_close(condition["encoder_hidden_states"], torch.cat([states, negative]))
    torch.testing.assert_close(condition["text_embeds"], torch.cat([pooled, negative_pooled]))
    assert not negative.any()


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
@pytest.mark.parametrize("make", [tiny.stable_diffusion_3, tiny.flux])
def test_the_own_grid_is_what_diffusers_would_set(tmp_path, make, size):
    theirs = make(tmp_path / "flow")
    family = Flux if make is tiny.flux else StableDiffusion3
    ours = family.load(tmp_path / "flow", CPU, torch.float32)
    width, height = size
    theirs("a cat", width=width, height=height, num_inference_steps=7, output_type="latent")
    grid = ours.own_sigmas(7, ours.card.sample_shape(width, height))
    # Theirs begins at time 1, pure noise, where σ is infinite; ours at the largest σ there is.
    expected = theirs.scheduler.sigmas.double()
    torch.testing.assert_close(flow_time(grid)[1:], expected[1:], rtol=0, atol=1e-6)
    assert grid[0] == ours.card.sigma_max
    assert np.all(np.diff(grid.numpy()) < 0)


def test_a_long_grid_of_a_flow_model_falls_from_the_first_level(tmp_path):
    tiny.stable_diffusion_3(tmp_path / "sd3")
    ours = StableDiffusion3.load(tmp_path / "sd3", CPU, torch.float32)
    for steps in (60, 250):
        grid = ours.own_sigmas(steps, ours.card.sample_shape(16, 16))
        assert len(grid) == steps + 1
        assert grid[0] == pytest.approx(ours.card.sigma_max)
        assert (grid.diff() < 0).all()


def test_a_picture_beyond_the_table_of_positions_is_refused(tmp_path):
    theirs = tiny.stable_diffusion_3(tmp_path / "sd3")
    ours = StableDiffusion3.load(tmp_path / "sd3", CPU, torch.float32)
    config = theirs.transformer.config
    most = config.pos_embed_max_size * config.patch_size * theirs.vae_scale_factor
    assert ours.card.sample_shape(most, 16)
    with pytest.raises(InvalidInputError, match=f"width must be at most {most}"):
        ours.card.sample_shape(most + ours.card.multiple, 16)


def test_xl_s_autoencoder_stays_exact_in_float16(tmp_path):
    """It overflows in float16, as its configuration says; diffusers upcasts it, too."""
    tiny.stable_diffusion_xl(tmp_path / "xl")
    ours = StableDiffusionXL.load(tmp_path / "xl", CPU, torch.float16)
    assert [next(n.parameters()).dtype for n in ours.networks[:2]] == [torch.float16, torch.float32]
    assert ours.decode(torch.zeros(1, 4, 8, 8)).isfinite().all()


def test_at_zero_terminal_snr_single_forwards_are_what_the_schedule_says(tmp_path):
    theirs = tiny.stable_diffusion(tmp_path / "sd", prediction="v_prediction", zero_snr=True)
    ours = StableDiffusion.load(tmp_path / "sd", CPU, torch.float32)
    cumulative = theirs.scheduler.alphas_cumprod.double()
    assert cumulative[-1] == 0
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = ours.encode_prompts(["a cat"])
    for timestep in (990, 500, 0):
        alpha, level = cumulative[timestep].sqrt(), (1 - cumulative[timestep]).sqrt()
        with torch.no_grad():
            velocity = theirs.unet(x, timestep, condition["encoder_hidden_states"]).sample
        expected = float(alpha) * x - float(level) * velocity
        got = denoise(ours, x / float(alpha), (level / alpha).reshape(1), condition)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_pixart_that_is_told_its_pictures_size_hears_it_as_diffusers_tells_it(tmp_path):
    theirs = tiny.pixart(tmp_path / "alpha", kind=PixArtAlphaPipeline, size_inputs=True)
    ours = PixArtAlpha.load(tmp_path / "alpha", CPU, torch.float32)
    x = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    states, words, _, _ = theirs.encode_prompt(["a cat", "a dog"], False, device=CPU, max_sequence_length=120)
    size = {"resolution": torch.tensor([[16.0, 24.0]] * 2), "aspect_ratio": torch.tensor([[16 / 24]] * 2)}
    with torch.no_grad():
        output = theirs.transformer(
            x, states, torch.tensor([500.0, 500.0]), added_cond_kwargs=size, encoder_attention_mask=words
        ).sample[:, :4]
    sigma = ours._path._table.sigmas[500].expand(2)
    scale = (1 + sigma**2).sqrt().float()[:, None, None, None]
    expected = x * scale - sigma.float()[:, None, None, None] * output
    got = denoise(ours, x * scale, sigma, ours.encode_prompts(["a cat", "a dog"]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_what_pixart_cannot_load_is_told(tmp_path):
    file = tmp_path / "pixart.safetensors"
    file.touch()
    for source, options, told in (
        (file, LoadOptions(), "from a folder"),
        (tmp_path, LoadOptions({"ink": file}), "LoRAs"),
    ):
        with pytest.raises(ModelLoadError, match=told):
            PixArt.load(source, CPU, torch.float32, options)


def test_architectures_over_one_autoencoder_compose(tmp_path):
    """A U-Net that reads CLIP and a transformer that reads T5, on different schedules, in one data space."""
    theirs = tiny.pixart(tmp_path / "pixart")
    unet = tiny.stable_diffusion(tmp_path / "sd", prediction="v_prediction")
    unet.vae.load_state_dict(theirs.vae.state_dict())
    unet.save_pretrained(tmp_path / "sd")
    models = {
        "pixart": PixArt.load(tmp_path / "pixart", CPU, torch.float32),
        "sd": StableDiffusion.load(tmp_path / "sd", CPU, torch.float32),
    }
    expression = And((Prompt("a cat", "pixart"), Prompt("a dog", "sd")), method=Method.BALANCED)
    params = SamplingParams(steps=4, guidance_scale=3.0, width=16, height=16)
    drawn = sample(expression, params, models)
    torch.testing.assert_close(drawn.log_density[:, 0], drawn.log_density[:, 1], rtol=1e-6, atol=1e-6)


def test_what_a_family_does_not_know_is_refused(tmp_path):
    tiny.flux(tmp_path / "schnell", distilled=False)
    models = {"m": Flux.load(tmp_path / "schnell", CPU, torch.float32)}
    with pytest.raises(InvalidInputError, match="guidance_scale must be 1"):
        sample(Prompt("a cat", "m"), SamplingParams(steps=1, guidance_scale=3), models)
    with pytest.raises(InvalidInputError, match="no classifier-free guidance, so a negative prompt has no effect"):
        sample(Prompt("a cat", "m"), SamplingParams(steps=1, guidance_scale=1, negative_prompt="dark"), models)
