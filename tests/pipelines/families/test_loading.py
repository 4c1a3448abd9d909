"""Folders as users have them: whole, broken, or of another kind."""

import json
import shutil

import pytest
import torch

from pipelines.catalog import Catalog
from pipelines.entry import Entry
from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.families.folder import (
    CALIBRATION_FILE,
    read_calibration,
    write_calibration,
)
from pipelines.families.preview import apply_colours, fit_colours
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.unconditional import Unconditional
from pipelines.kernel import DenoisingError
from tests.pipelines.families import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "sd"
    tiny.stable_diffusion(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "sd")


def load(folder):
    return StableDiffusion.load(folder, CPU, torch.float32)


def test_a_card_tells_the_model(whole):
    card = load(whole).card
    assert (card.width, card.height, card.space.factor, card.space.channels) == (16, 16, 2, 4)
    assert card.sigma_max == pytest.approx(14.6146, abs=1e-3)
    assert card.sigma_min == pytest.approx(0.0292, abs=1e-3)
    assert card.takes_prompts
    assert not card.calibrated


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(folder):
    """Weights as a pickle: never loaded, since loading one runs what it says."""
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save({"weight": torch.zeros(1)}, weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: truncate(f / "unet/diffusion_pytorch_model.safetensors"),
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(),
        lambda f: shutil.rmtree(f / "text_encoder"),
        lambda f: (f / "unet/config.json").write_text("not json"),
        lambda f: (f / CALIBRATION_FILE).write_text('{"sigmas": [1]}'),
        lambda f: (f / CALIBRATION_FILE).write_text('{"sigmas": [1, 2], "denoising_error": [NaN, 1]}'),
        pickled,
    ],
)
def test_a_broken_folder_is_named_without_its_path(folder, harm):
    harm(folder)
    with pytest.raises(ModelLoadError, match=r"^broken: ") as refused:
        Catalog([Entry("broken", folder)], "cpu").get("broken")
    assert str(folder.parent) not in str(refused.value)


def test_parts_that_do_not_fit_are_refused(folder, tmp_path):
    tiny.stable_diffusion(tmp_path / "other", latent_channels=8)
    shutil.rmtree(folder / "vae")
    shutil.copytree(tmp_path / "other/vae", folder / "vae")
    with pytest.raises(ModelLoadError, match="takes 4 channels and gives 4, but its autoencoder has 8"):
        load(folder)


def test_the_data_space_is_what_the_autoencoder_does(folder, tmp_path):
    space = load(folder).card.space
    same = shutil.copytree(folder, tmp_path / "same")
    config = json.loads((same / "vae/config.json").read_text())
    for key in ("sample_size", "force_upcast"):
        config.pop(key)
    (same / "vae/config.json").write_text(json.dumps(config | {"_name_or_path": "somebody/else"}))
    (same / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another file beside it")
    assert load(same).card.space == space
    for dtype in (torch.float16, torch.bfloat16):
        coarse = StableDiffusion.load(folder, CPU, dtype)
        assert coarse.card.space == space
        assert {weight.dtype for network in coarse.networks for weight in network.parameters()} == {dtype}
    (same / "vae/config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert load(same).card.space != space
    tiny.stable_diffusion(tmp_path / "other", seed=1)
    assert load(tmp_path / "other").card.space != space


def test_a_stored_calibration_is_read(folder):
    curve = DenoisingError((0.03, 1.0, 14.0), (0.001, 0.4, 0.9))
    write_calibration(folder / CALIBRATION_FILE, curve)
    assert read_calibration(folder / CALIBRATION_FILE) == curve
    card = load(folder).card
    assert card.calibrated
    assert card.error == curve


@pytest.mark.parametrize("kind", ["stable_diffusion", "unconditional"])
def test_a_model_that_was_not_calibrated_is_stepped_by_its_data_s_deviation(tmp_path, kind):
    getattr(tiny, kind)(tmp_path / "m")
    card = Catalog([Entry("m", tmp_path / "m", data_std=0.7)], "cpu").get("m").card
    assert not card.calibrated
    # σ²σ_d²/(σ² + σ_d²) at σ = 1; the curve is interpolated between levels a tenth apart.
    assert card.error(torch.tensor([1.0])).item() == pytest.approx(0.49 / 1.49, rel=0.01)


@pytest.mark.parametrize(("width", "height", "field"), [(18, 16, "width"), (16, 6, "height"), (0, 16, "width")])
def test_sizes_that_the_network_cannot_halve_are_refused(whole, width, height, field):
    with pytest.raises(InvalidInputError, match=f"{field} must be a positive multiple of 4") as refused:
        load(whole).card.sample_shape(width, height)
    assert refused.value.field == (field,)


def test_rows_do_not_depend_on_their_company(whole):
    model = load(whole)
    g = torch.Generator().manual_seed(0)
    z, sigma = torch.randn(5, 4, 8, 8, generator=g) * 3, torch.tensor([14.0, 3.0, 1.0, 0.3, 0.05])
    condition = model.encode_prompts(["a", "b", "c", "d", "e"])
    together = model.predict_noise(z, sigma, condition)
    for i in range(5):
        alone = model.predict_noise(z[i : i + 1], sigma[i : i + 1], model.encode_prompts(["abcde"[i]]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_single(whole, dtype):
    """Relative error of a few units in the last place, times the depth of the network."""
    single, half = load(whole), StableDiffusion.load(whole, CPU, dtype)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([2.0, 0.2])
    expected = single.predict_noise(z, sigma, single.encode_prompts(["a", "b"]))
    got = half.predict_noise(z, sigma, half.encode_prompts(["a", "b"]))
    assert got.dtype == torch.float32
    assert (got - expected).norm() / expected.norm() < 20 * torch.finfo(dtype).eps
    assert half.decode(z).dtype == torch.float32


def test_previews_of_a_large_autoencoder_are_small_pictures(whole, monkeypatch):
    monkeypatch.setattr("pipelines.families.latent._CHEAP_AUTOENCODER", 0)
    small = load(whole).preview(torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(5)))
    assert small.shape == (2, 3, 8, 6)
    assert small.min() >= 0
    assert small.max() <= 1


def test_the_colours_of_a_linear_decoder_are_found_exactly():
    mix = torch.tensor([[0.02, -0.01, 0.03], [0.01, 0.02, -0.02]])

    def decode(latents):
        cells = torch.einsum("bchw,ck->bkhw", latents, mix) + 0.5
        return cells.repeat_interleave(4, 2).repeat_interleave(4, 3)

    colours = fit_colours(decode, channels=2, factor=4, device=CPU)
    torch.testing.assert_close(colours, torch.cat([mix, torch.full((1, 3), 0.5)]), rtol=0, atol=1e-5)
    z = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(apply_colours(colours, z), torch.nn.functional.avg_pool2d(decode(z), 4))


def test_an_unconditional_model_takes_neither_prompts_nor_sizes(tmp_path):
    tiny.unconditional(tmp_path / "ddpm", channels=1)
    model = Unconditional.load(tmp_path / "ddpm", CPU, torch.float32)
    assert model.encode_prompts([""]) == {}
    with pytest.raises(InvalidInputError, match="takes no prompts"):
        model.encode_prompts(["a cat"])
    with pytest.raises(InvalidInputError, match="8×8 only, got 16×8"):
        model.card.sample_shape(16, 8)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(model.decode(model.encode(images)), grey)
