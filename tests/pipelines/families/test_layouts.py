"""Weights on disk as users have them: variants, shards, single files; shared parts; spaces that are declared equal."""

import shutil

import pytest
import torch

from pipelines.catalog import Catalog
from pipelines.composition import And, Prompt
from pipelines.entry import Entry
from pipelines.errors import IncompatibleModelsError, ModelLoadError
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.model import LoadOptions
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from tests.pipelines.families import tiny
from tests.pipelines.families.original import write_single_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "sd"
    return tiny.stable_diffusion(folder), folder


def answers(model):
    """What a model makes of one noisy row, and of one picture."""
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    row = model.predict_noise(z, torch.tensor([1.3]), model.encode_prompts(["a red circle"]))
    return row, model.decode(row), model.encode(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def same(model, other):
    """The same weights, bit by bit; the answers up to rounding, which depends on where weights lie in memory."""
    for ours, theirs in zip(model.networks, other.networks, strict=True):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    for a, b in zip(answers(model), answers(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert model.card.space == other.card.space


def test_an_fp16_variant_loads(whole, tmp_path):
    pipeline, folder = whole
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16")
    assert not list((tmp_path / "fp16/unet").glob("diffusion_pytorch_model.safetensors"))
    same(StableDiffusion.load(tmp_path / "fp16", CPU, torch.float32), StableDiffusion.load(folder, CPU, torch.float32))


def test_sharded_weights_load(whole, tmp_path):
    pipeline, folder = whole
    pipeline.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded/unet").glob("*-of-*.safetensors"))) > 1
    same(
        StableDiffusion.load(tmp_path / "sharded", CPU, torch.float32), StableDiffusion.load(folder, CPU, torch.float32)
    )


def test_a_missing_shard_is_told(whole, tmp_path):
    pipeline, _ = whole
    pipeline.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    next((tmp_path / "sharded/unet").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(ModelLoadError, match=r"^m: ") as refused:
        Catalog([Entry("m", tmp_path / "sharded")], "cpu").get("m")
    assert str(tmp_path) not in str(refused.value)


def test_a_single_file_in_the_original_layout_loads_beside_its_configuration(whole, tmp_path):
    pipeline, folder = whole
    config = tmp_path / "config"
    shutil.copytree(folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    file = write_single_file(pipeline, tmp_path / "one.safetensors")
    catalog = Catalog([Entry("one", file, "stable_diffusion", config=config)], "cpu")
    same(catalog.get("one"), StableDiffusion.load(folder, CPU, torch.float32))


def test_a_truncated_single_file_is_named(whole, tmp_path):
    pipeline, folder = whole
    file = write_single_file(pipeline, tmp_path / "one.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModelLoadError, match=r"^m: .*one\.safetensors is truncated") as refused:
        Catalog([Entry("m", file, "stable_diffusion", config=folder)], "cpu").get("m")
    assert str(tmp_path / "one") not in str(refused.value)


def test_a_truncated_part_is_named(whole, tmp_path):
    _, folder = whole
    shutil.copytree(folder, tmp_path / "sd")
    weights = tmp_path / "sd/vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ModelLoadError, match=r"^m: vae/diffusion_pytorch_model\.safetensors is truncated"):
        Catalog([Entry("m", tmp_path / "sd")], "cpu").get("m")


def test_models_over_the_same_files_share_them_in_memory(whole, tmp_path):
    _, folder = whole
    shutil.copytree(folder, tmp_path / "copy")
    other = tiny.stable_diffusion(tmp_path / "other", seed=1)
    entries = [Entry(name, path) for name, path in (("a", folder), ("b", tmp_path / "copy"), ("c", tmp_path / "other"))]
    held = Catalog([*entries, Entry("half", folder, dtype="bfloat16")], "cpu")
    a, b, c, half = (held.get(name) for name in ("a", "b", "c", "half"))
    assert a._codec.vae is b._codec.vae
    assert a._pipeline.text_encoder is b._pipeline.text_encoder
    assert a._unet is not b._unet
    assert c._codec.vae is not a._codec.vae
    assert half._codec.vae is not a._codec.vae
    same(a, b)
    assert other is not None


def test_spaces_that_the_operator_declares_equal_compose(whole, tmp_path):
    _, folder = whole
    tiny.stable_diffusion(tmp_path / "other", seed=1)
    expression = And((Prompt("a", "a"), Prompt("a", "b")))
    params = SamplingParams(steps=2)

    def models(space):
        options = LoadOptions(space=space)
        return {
            name: StableDiffusion.load(path, CPU, torch.float32, options)
            for name, path in (("a", folder), ("b", tmp_path / "other"))
        }

    with pytest.raises(IncompatibleModelsError, match="do not share a data space"):
        sample(expression, params, models(""))
    assert torch.isfinite(sample(expression, params, models("sd")).z).all()
    assert models("sd")["a"].card.space.codec == "sd"


def test_tiles_change_a_picture_little(whole):
    _, folder = whole
    plain = StableDiffusion.load(folder, CPU, torch.float32)
    tiled = StableDiffusion.load(folder, CPU, torch.float32, LoadOptions(tiling=True))
    assert tiled._codec.vae.use_tiling
    assert not plain._codec.vae.use_tiling
    same(plain, tiled)


def test_an_inpainting_unet_reads_the_mask_and_the_picture_as_diffusers_gives_them(tmp_path):
    theirs = tiny.stable_diffusion(tmp_path / "paint", inpainting=True)
    ours = StableDiffusion.load(tmp_path / "paint", CPU, torch.float32)
    assert ours.card.paints
    g = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 16, generator=g)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    z, sigma = torch.randn(1, 4, 8, 8, generator=g), torch.tensor([1.3])
    condition = ours.encode_prompts(["a cat"]) | ours.painted((4, 8, 8), image, mask)
    masked = (image * 2 - 1) * (mask < 0.5)
    latents = theirs.vae.encode(masked).latent_dist.mean * theirs.vae.config.scaling_factor
    x = torch.cat([z / (1 + 1.3**2) ** 0.5, mask[..., ::2, ::2], latents], 1)
    with torch.no_grad():
        output = theirs.unet(x, ours._path._table.timestep(sigma).float(), condition["encoder_hidden_states"]).sample
    torch.testing.assert_close(ours.predict_noise(z, sigma, condition), output, rtol=1e-4, atol=1e-4)
    drawn = sample(Prompt("a cat", "m"), SamplingParams(steps=2), {"m": ours}).z
    assert torch.isfinite(drawn).all()
