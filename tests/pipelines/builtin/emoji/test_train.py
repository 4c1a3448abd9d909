"""The recipe in its smoke version, on two drawn things: every stage runs, resumes, and leaves what composes."""

import pytest
import torch
from safetensors.torch import load_file

from pipelines.builtin.emoji.names import STYLES
from pipelines.builtin.emoji.train import Recipe, train
from pipelines.composition import And, Prompt
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.model import LoadOptions
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from tests.pipelines.builtin.emoji.drawn import draw_data

pytestmark = pytest.mark.filterwarnings("ignore:.*requires torchvision.*")
UNET = "emoji/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji")
    recipe = Recipe().smoke()
    train(recipe, draw_data(root / "data", recipe.names), root / "work", root / "models")
    return root


def load(folder, **options):
    return StableDiffusion.load(folder / "emoji", torch.device("cpu"), torch.float32, LoadOptions(**options))


def test_the_smoke_run_leaves_a_model_that_composes_with_its_styles(trained):
    loras = {style: trained / f"models/emoji/loras/{style}.safetensors" for style in STYLES}
    model = load(trained / "models", loras=loras)
    assert model.card.calibrated
    assert model.card.adapters == STYLES
    assert (model.card.width, model.card.height) == (64, 64)
    dressed = And((Prompt("a monkey", "emoji", (("fluent", 1.0),)), Prompt("a dog", "emoji", (("noto", 1.0),))))
    bare = And((Prompt("a monkey", "emoji"), Prompt("a dog", "emoji")))
    drawn = [sample(e, SamplingParams(steps=3), {"emoji": model}).z for e in (dressed, bare)]
    assert all(torch.isfinite(z).all() for z in drawn)
    assert not torch.allclose(*drawn)


def test_weights_are_float16_and_small_enough_to_ship(trained):
    files = list((trained / "models").rglob("*.safetensors"))
    assert len(files) == 3 + len(STYLES)
    for file in files:
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    assert sum(file.stat().st_size for file in files) < 30e6
    assert not list((trained / "models").rglob("*.bin"))


def test_a_second_run_over_the_same_work_gives_the_same_weights(trained, tmp_path):
    train(Recipe().smoke(), trained / "data", trained / "work", tmp_path)
    for file in ("emoji/vae/diffusion_pytorch_model.safetensors", UNET, "emoji/loras/noto.safetensors"):
        assert (tmp_path / file).read_bytes() == (trained / "models" / file).read_bytes()


def test_stages_alone_leave_their_checkpoints_and_no_model(trained, tmp_path):
    train(Recipe().smoke(), trained / "data", tmp_path / "work", tmp_path / "models", only=["denoiser"])
    assert [file.name for file in (tmp_path / "work").glob("*.pt")] == ["denoiser.pt"]
    assert not (tmp_path / "models").exists()


def test_training_further_starts_from_the_weights_of_an_earlier_run(trained, tmp_path):
    train(Recipe().smoke(), trained / "data", tmp_path / "work", tmp_path, further=trained / "models")
    old, new = (load_file(folder / UNET) for folder in (trained / "models", tmp_path))
    moved = max(float((old[name].float() - new[name].float()).abs().max()) for name in old)
    # A few steps of AdamW, averaged over thousands: moved, and by far less than another start (about 0.1) would be.
    assert 0 < moved < 0.01
    encoders = [
        load(folder).encode(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        for folder in (trained / "models", tmp_path)
    ]
    torch.testing.assert_close(*encoders)
