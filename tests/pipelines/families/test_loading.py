"""Folders as users have them: whole, broken, or of another kind."""

import json
import shutil

import pytest
import torch

from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.families.folder import (
    CALIBRATION_FILE,
    fingerprint,
    pipeline_class,
    read_calibration,
    write_calibration,
)
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


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda f: truncate(f / "unet/diffusion_pytorch_model.safetensors"), "sd: cannot be loaded"),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), "sd: cannot be loaded"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "sd: cannot be loaded"),
        (lambda f: (f / "model_index.json").write_text("{"), "sd: cannot be loaded"),
        (lambda f: (f / "unet/config.json").write_text("not json"), "sd: cannot be loaded"),
        (lambda f: (f / CALIBRATION_FILE).write_text('{"sigmas": [1]}'), "calibration.json is not a calibration"),
    ],
)
def test_a_broken_folder_is_named_without_its_path(folder, harm, told):
    harm(folder)
    with pytest.raises(ModelLoadError, match=told) as refused:
        load(folder)
    assert str(folder.parent) not in str(refused.value)


def test_pickled_weights_are_refused(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save({"weight": torch.zeros(1)}, weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelLoadError, match="sd: cannot be loaded"):
        load(folder)


def test_parts_that_do_not_fit_are_refused(folder, tmp_path):
    tiny.stable_diffusion(tmp_path / "other", latent_channels=8)
    shutil.rmtree(folder / "vae")
    shutil.copytree(tmp_path / "other/vae", folder / "vae")
    with pytest.raises(ModelLoadError, match="U-Net takes 4 channels but its autoencoder has 8"):
        load(folder)


def test_the_data_space_is_the_autoencoder_s_weights(folder, tmp_path):
    same = shutil.copytree(folder, tmp_path / "same")
    assert load(same).card.space == load(folder).card.space
    other = tmp_path / "other"
    tiny.stable_diffusion(other, seed=1)
    assert load(other).card.space != load(folder).card.space
    config = json.loads((same / "vae/config.json").read_text())
    (same / "vae/config.json").write_text(json.dumps(config | {"_name_or_path": "somebody/else"}))
    assert fingerprint(same / "vae") == fingerprint(folder / "vae")
    (same / "vae/config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert fingerprint(same / "vae") != fingerprint(folder / "vae")


def test_a_stored_calibration_is_read(folder):
    curve = DenoisingError((0.03, 1.0, 14.0), (0.001, 0.4, 0.9))
    write_calibration(folder / CALIBRATION_FILE, curve)
    assert read_calibration(folder / CALIBRATION_FILE) == curve
    card = load(folder).card
    assert card.calibrated
    assert card.error == curve


@pytest.mark.parametrize(("width", "height", "field"), [(18, 16, "width"), (16, 6, "height"), (0, 16, "width")])
def test_sizes_that_the_network_cannot_halve_are_refused(whole, width, height, field):
    with pytest.raises(InvalidInputError, match=f"{field} must be a positive multiple of 4") as refused:
        load(whole).sample_shape(width, height)
    assert refused.value.field == (field,)


def test_rows_do_not_depend_on_their_company(whole):
    model = load(whole)
    g = torch.Generator().manual_seed(0)
    z, sigma = torch.randn(5, 4, 8, 8, generator=g) * 3, torch.tensor([14.0, 3.0, 1.0, 0.3, 0.05])
    condition = model.encode_prompts(["a", "b", "c", "d", "e"])
    together = model.denoised(z, sigma, condition)
    for i in range(5):
        alone = model.denoised(z[i : i + 1], sigma[i : i + 1], model.encode_prompts(["abcde"[i]]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_the_family_is_read_from_the_index(folder, tmp_path):
    assert pipeline_class(folder) == "StableDiffusionPipeline"
    with pytest.raises(ModelLoadError, match=r"empty: no model_index\.json"):
        pipeline_class(tmp_path / "empty")
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(ModelLoadError, match="names no pipeline class"):
        pipeline_class(folder)


def test_an_unconditional_model_takes_neither_prompts_nor_sizes(tmp_path):
    tiny.unconditional(tmp_path / "ddpm", channels=1)
    model = Unconditional.load(tmp_path / "ddpm", CPU, torch.float32)
    assert model.encode_prompts([""]) == {}
    with pytest.raises(InvalidInputError, match="takes no prompts"):
        model.encode_prompts(["a cat"])
    with pytest.raises(InvalidInputError, match="8×8 only, got 16×8"):
        model.sample_shape(16, 8)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(model.decode(model.encode(images)), grey)
