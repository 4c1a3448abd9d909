"""The recipe in its smoke version: every stage runs, resumes to the same result, and leaves models that load."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from pipelines.builtin.captions import noisy_words
from pipelines.builtin.fitting import Plan, fit
from pipelines.builtin.train import Recipe, train
from pipelines.builtin.vocabulary import WORDS, write_tokenizer
from pipelines.composition import And, Prompt
from pipelines.entry import BUILTIN_FOLDER
from pipelines.families.folder import CALIBRATION_FILE, read_calibration
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.params import SamplingParams
from pipelines.sampler import sample

pytestmark = pytest.mark.filterwarnings("ignore:.*requires torchvision.*")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipe")
    train(Recipe().smoke(), root / "work", root / "models")
    return root


def test_the_smoke_run_leaves_models_that_load_and_compose(trained):
    cpu = torch.device("cpu")
    models = {
        name: StableDiffusion.load(trained / "models" / name, cpu, torch.float32)
        for name in ("shapes", "shapes-round", "shapes-sharp")
    }
    assert all(model.card.calibrated for model in models.values())
    expression = And((Prompt("a red circle", "shapes-round"), Prompt("a blue star", "shapes-sharp")))
    assert torch.isfinite(sample(expression, SamplingParams(steps=3), models).z).all()


def test_models_are_float16_safetensors_and_share_parts_by_links(trained):
    models = trained / "models"
    weights = load_file(models / "shapes-round/unet/diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float16}
    for part in ("vae", "text_encoder", "tokenizer"):
        assert (models / "shapes-sharp" / part).is_symlink()
        assert (models / "shapes-sharp" / part).resolve() == (models / "shapes" / part).resolve()
    assert not list(models.rglob("*.bin"))


def test_a_second_run_over_the_same_work_gives_the_same_models(trained, tmp_path):
    train(Recipe().smoke(), trained / "work", tmp_path)
    for name in ("shapes", "shapes-round"):
        weights = "unet/diffusion_pytorch_model.safetensors"
        assert (tmp_path / name / weights).read_bytes() == (trained / "models" / name / weights).read_bytes()
        curves = [read_calibration(root / name / CALIBRATION_FILE) for root in (tmp_path, trained / "models")]
        # Sums over pixels, in an order that depends on where memory lies.
        assert curves[0].values == pytest.approx(curves[1].values, rel=1e-4)


def moved(before, after, part):
    """How far each weight of a part moved at most."""
    old, new = (load_file(next((folder / part).glob("*.safetensors"))) for folder in (before, after))
    return [float((new[name].float() - old[name].float()).abs().max()) for name in old]


def test_training_further_starts_from_the_weights_of_an_earlier_run(trained, tmp_path):
    names = ["shapes", "shapes-round"]
    train(Recipe(seed=1).smoke(), tmp_path / "work", tmp_path / "out", only=names, further=trained / "models")
    for part in ("vae", "text_encoder"):
        assert not any(moved(trained / "models/shapes", tmp_path / "out/shapes", part))
    for name in names:
        # A few steps of AdamW, averaged over thousands: moved, and by far less than another start (about 0.1) would be.
        assert 0 < max(moved(trained / "models" / name, tmp_path / "out" / name, "unet")) < 0.01


def test_over_a_frozen_autoencoder_and_text_encoder_denoisers_start_anew(trained, tmp_path):
    train(Recipe(seed=1).smoke(), tmp_path / "work", tmp_path / "out", only=["shapes"], frozen=trained / "models")
    before, after = trained / "models/shapes", tmp_path / "out/shapes"
    for part in ("vae", "text_encoder"):
        assert not any(moved(before, after, part))
    assert max(moved(before, after, "unet")) > 0.05


def test_a_half_alone_needs_shapes_to_link_to(trained, tmp_path):
    with pytest.raises(ValueError, match="train shapes first"):
        train(Recipe().smoke(), tmp_path / "work", tmp_path, only=["shapes-round"], frozen=trained / "models")


def test_a_stopped_run_resumes_to_what_it_would_have_been(tmp_path):
    def losses(module, target):
        def loss(rng):
            x = torch.from_numpy(rng.standard_normal((8, 3)).astype(np.float32))
            return (module(x) - x @ target + 0.1 * torch.randn(8, 1)).square().mean()

        return loss

    target = torch.tensor([[1.0], [2.0], [3.0]])
    plan = Plan(steps=30, batch=8, learning_rate=1e-2, warmup=5)

    def run(checkpoint, stop_at=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
        inner = losses(module, target)
        calls = iter(range(1000))

        def loss(rng):
            if stop_at is not None and next(calls) == stop_at:
                raise KeyboardInterrupt
            return inner(rng)

        fit(module, loss, plan, checkpoint=checkpoint, label="test", seed=0, checkpoint_every=10)
        return module.weight

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped.pt", stop_at=17)
    torch.testing.assert_close(run(tmp_path / "stopped.pt"), whole, rtol=0, atol=0)


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    module = torch.nn.Linear(1, 1)

    def loss(rng):
        return module(torch.ones(1, 1)).square().mean()

    fit(module, loss, Plan(steps=2, batch=1, learning_rate=0.1), checkpoint=tmp_path / "c.pt", label="test", seed=0)
    with pytest.raises(ValueError, match="another plan"):
        fit(module, loss, Plan(steps=3, batch=1, learning_rate=0.1), checkpoint=tmp_path / "c.pt", label="test", seed=0)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    plan = Plan(steps=100, batch=1, learning_rate=1.0, warmup=10)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1)
    assert rates[-1] < 0.01


def test_known_words_are_one_token_and_unknown_ones_fall_apart(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    for word in WORDS:
        assert len(tokenizer.tokenize(word)) == 1
    assert len(tokenizer.tokenize("shiny")) > 1
    ids = tokenizer("ein 猫 🦊 red", padding="max_length", truncation=True).input_ids
    assert len(ids) == tokenizer.model_max_length
    vocabulary = tokenizer.get_vocab()
    assert all(token in vocabulary for token in tokenizer.tokenize("ein 猫 🦊"))
    assert ids.index(tokenizer.eos_token_id) == len(tokenizer.tokenize("ein 猫 🦊 red")) + 1


def test_the_recipe_makes_the_tokenizer_that_ships(tmp_path):
    """Token numbers are what the text encoder was trained on: they must not change from run to run."""
    shipped = CLIPTokenizer.from_pretrained(BUILTIN_FOLDER / "shapes/tokenizer")
    assert write_tokenizer(tmp_path).get_vocab() == shipped.get_vocab()


def test_noisy_words_keep_the_caption_s_own():
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = noisy_words("a red circle", rng).split()
        assert [w for w in words if w in {"red", "circle"}] == ["red", "circle"]
