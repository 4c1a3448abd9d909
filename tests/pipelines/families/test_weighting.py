"""Weighted and long prompts: against the plain ones where they must agree, and against compel's definition."""

import pytest
import torch

from pipelines.catalog import Catalog
from pipelines.composition import Or, Prompt
from pipelines.errors import InvalidInputError, ModelLoadError
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.stable_diffusion_xl import StableDiffusionXL
from pipelines.families.weighting import parse
from pipelines.model import LoadOptions
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from tests.pipelines.families import tiny

CPU = torch.device("cpu")
LONG = "a red circle and a blue star and a green square, " * 4


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red hat:1.3) on", [("a ", 1.0), ("red hat", 1.3), (" on", 1.0)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        ("a cat (tabby)", [("a cat (tabby)", 1.0)]),
        (r"\(a:1.3\)", [("(a:1.3)", 1.0)]),
        ("open (never closed:1.2", [("open (never closed:1.2", 1.0)]),
        ("closed) never open", [("closed) never open", 1.0)]),
        ("(half:.5)", [("half", 0.5)]),
        ("((meet at 10:30:1.2))", [("(", 1.0), ("meet at 10:30", 1.2), (")", 1.0)]),
        ("((a:2) b:3)", [("a", 6.0), (" b", 3.0)]),
        ("time 12:30 (x)", [("time 12:30 (x)", 1.0)]),
        ("back\\slash", [("back\\slash", 1.0)]),
        ("", []),
    ],
)
def test_weights_are_read_as_people_write_them(text, fragments):
    assert (
        parse(text) == pytest.approx(fragments)
        if not fragments
        else parse(text) == [(words, pytest.approx(weight)) for words, weight in fragments]
    )


@pytest.fixture(scope="module", params=["sd", "xl"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / request.param
    if request.param == "sd":
        tiny.stable_diffusion(folder)
        return StableDiffusion.load(folder, CPU, torch.float32)
    tiny.stable_diffusion_xl(folder)
    return StableDiffusionXL.load(folder, CPU, torch.float32)


def states(model, text):
    return model.encode_prompts([text])["encoder_hidden_states"]


def test_weight_one_changes_nothing(model):
    plain = states(model, "a red circle")
    assert torch.equal(states(model, "a (red:1) circle"), plain)
    # The weighted way, made to take the plain text, agrees with diffusers'.
    weighted, _ = model._weighted.encode("a red circle")
    torch.testing.assert_close(weighted, plain, rtol=1e-5, atol=1e-5)


def test_weights_move_the_states_of_their_words(model):
    plain, heavy = states(model, "a red circle"), states(model, "a (red:1.5) circle")
    moved = (heavy - plain).norm(dim=-1)[0]
    assert heavy.shape == plain.shape
    assert moved[2] > 0
    assert moved[1] == pytest.approx(0, abs=1e-5)
    light = states(model, "a (red:0.5) circle")
    assert (light - plain).norm() > 0


def test_a_long_text_is_read_in_pieces(model):
    long = states(model, LONG)
    pieces, rest = divmod(long.shape[1], states(model, "").shape[1])
    # Each of the four phrases takes up more than half of what the encoder reads at once.
    assert (pieces, rest) == (4, 0)
    assert torch.isfinite(long).all()


def test_texts_of_different_lengths_compose(model):
    expression = Or((Prompt(LONG, "m"), Prompt("a red circle", "m")))
    drawn = sample(expression, SamplingParams(steps=2, guidance_scale=3, seed=1), {"m": model})
    assert torch.isfinite(drawn.z).all()
    assert drawn.log_density[0, 0] != drawn.log_density[0, 1]


def test_texts_of_different_lengths_are_not_stacked(model):
    with pytest.raises(InvalidInputError, match="must be encoded one by one"):
        model.encode_prompts([LONG, "a"])


def test_clip_skip_takes_the_layer_before(tmp_path):
    theirs = tiny.stable_diffusion(tmp_path / "sd")
    ours = StableDiffusion.load(tmp_path / "sd", CPU, torch.float32, LoadOptions(clip_skip=1))
    tokens = theirs.tokenizer("a red circle", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        before = theirs.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        expected = theirs.text_encoder.final_layer_norm(before)
    torch.testing.assert_close(states(ours, "a red circle"), expected)
    torch.testing.assert_close(ours._weighted.encode("a red circle")[0], expected, rtol=1e-5, atol=1e-5)


def test_clip_skip_must_leave_a_layer(tmp_path):
    layers = tiny.stable_diffusion(tmp_path / "sd").text_encoder.config.num_hidden_layers
    with pytest.raises(ModelLoadError, match=f"clip_skip is {layers}, but its text encoder has {layers} layers"):
        StableDiffusion.load(tmp_path / "sd", CPU, torch.float32, LoadOptions(clip_skip=layers))


def test_models_that_skip_layers_share_no_text_encoder(tmp_path):
    tiny.stable_diffusion(tmp_path / "sd")
    (tmp_path / "c.toml").write_text(
        '[models.whole]\nsource = "sd"\n[models.skips]\nsource = "sd"\nclip_skip = 1\n[models.again]\nsource = "sd"'
    )
    catalog = Catalog.read(tmp_path / "c.toml", "cpu")
    whole, skips, again = (catalog.get(name) for name in catalog.names)
    assert torch.equal(states(again, "a"), states(whole, "a"))
    assert not torch.equal(states(skips, "a"), states(whole, "a"))
