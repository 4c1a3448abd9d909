"""LoRAs by row: each as if it were alone, several at once, and against diffusers' own way of applying them."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipelines.catalog import Catalog
from pipelines.composition import And, Or, Prompt
from pipelines.entry import Entry
from pipelines.errors import InvalidInputError
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.model import LoadOptions
from pipelines.networks import collate
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from tests.pipelines.families import tiny

CPU = torch.device("cpu")
NAMES = ("ink", "clay", "wool")


def write_lora(pipeline, folder, name, seed, dora=False):
    """A random LoRA of the U-Net and the text encoder, as training scripts save it."""
    torch.manual_seed(seed)
    states = []
    parts = ((pipeline.unet, ["to_q", "to_v", "to_out.0"]), (pipeline.text_encoder, ["q_proj", "v_proj"]))
    for part, targets in parts:
        part.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, use_dora=dora), adapter_name=name)
        for parameter_name, parameter in part.named_parameters():
            if f"lora_B.{name}" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        states.append(convert_state_dict_to_diffusers(get_peft_model_state_dict(part, adapter_name=name)))
        part.delete_adapters(name) if hasattr(part, "delete_adapters") else part.delete_adapter(name)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=states[0], text_encoder_lora_layers=states[1], weight_name=f"{name}.safetensors"
    )
    return folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    pipeline = tiny.stable_diffusion(root / "sd", hearing=4)
    for seed, name in enumerate(NAMES):
        write_lora(pipeline, root, name, seed)
    return root


@pytest.fixture(scope="module")
def model(folder):
    options = LoadOptions({name: folder / f"{name}.safetensors" for name in NAMES})
    return StableDiffusion.load(folder / "sd", CPU, torch.float32, options)


def rows(model, applied):
    """Noisy rows and their condition, each with its LoRAs."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(len(applied), 4, 8, 8, generator=g) * 2
    sigma = torch.linspace(0.3, 5, len(applied))
    return z, sigma, collate([(model.encode_prompts(["a red circle"], adapters), 1) for adapters in applied])


def each_alone(model, applied):
    z, sigma, condition = rows(model, applied)
    one_by_one = [{key: value[i : i + 1] for key, value in condition.items()} for i in range(len(applied))]
    return torch.cat([model.predict_noise(z[i : i + 1], sigma[i : i + 1], row) for i, row in enumerate(one_by_one)])


CROWDS = {
    "one-each": [{}, {"ink": 0.8}, {"clay": 1.0}, {"ink": 0.8}, {}],
    "two-at-once": [{}, {"ink": 0.5, "clay": 0.5}, {"clay": 1.0}],
    "two-scales": [{"ink": 0.3}, {"ink": 0.9}, {}],
    "negative": [{"ink": -0.5}, {"wool": 2.0}],
    "alike": [{"ink": 0.8}] * 3,
}


@pytest.mark.parametrize("applied", CROWDS.values(), ids=CROWDS.keys())
def test_rows_in_a_crowd_are_what_they_are_alone(model, applied):
    torch.testing.assert_close(
        model.predict_noise(*rows(model, applied)), each_alone(model, applied), rtol=1e-4, atol=1e-4
    )


def test_rows_of_one_lora_each_share_one_forward(model, monkeypatch):
    calls = []
    forward = model._unet.forward
    monkeypatch.setattr(model._unet, "forward", lambda *args, **kw: calls.append(len(args[0])) or forward(*args, **kw))
    model.predict_noise(*rows(model, CROWDS["one-each"]))
    assert calls == [5]
    model.predict_noise(*rows(model, CROWDS["two-scales"]))
    assert sorted(calls[1:]) == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("applied", [{}, {"ink": 0.8}, {"ink": 0.5, "wool": -0.7}])
def test_a_row_is_what_diffusers_makes_of_it(folder, model, applied):
    theirs = StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None)
    for name in applied:
        theirs.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
    if applied:
        theirs.set_adapters(list(applied), list(applied.values()))
    z, sigma, condition = rows(model, [applied])
    embedded, _ = theirs.encode_prompt(["a red circle"], CPU, 1, False)
    torch.testing.assert_close(condition["encoder_hidden_states"], embedded, rtol=1e-5, atol=1e-5)
    x = z / (1 + sigma**2).sqrt()[:, None, None, None]
    with torch.no_grad():
        output = theirs.unet(x, model._path._table.timestep(sigma).float(), embedded).sample
    torch.testing.assert_close(model.predict_noise(z, sigma, condition), output, rtol=1e-4, atol=1e-4)


def test_loras_do_something_and_not_the_same(model):
    z, sigma, condition = rows(model, [{}, {"ink": 1.0}, {"clay": 1.0}])
    z, sigma = z[:1].expand(3, -1, -1, -1), sigma[1:2].expand(3)
    bare, ink, clay = model.predict_noise(z, sigma, condition)
    assert (ink - bare).norm() > 0.01 * bare.norm()
    assert (ink - clay).norm() > 0.01 * bare.norm()


def test_components_of_one_request_have_different_loras(model):
    inked = Prompt("a red circle", "m", (("ink", 0.8),))
    params = SamplingParams(steps=3, guidance_scale=3, seed=1)
    both = sample(Or((inked, Prompt("a red circle", "m"))), params, {"m": model})
    assert both.log_density[0, 0] != both.log_density[0, 1]
    same = sample(And((inked, inked)), params, {"m": model})
    alone = sample(inked, params, {"m": model})
    torch.testing.assert_close(same.z, alone.z, rtol=1e-4, atol=1e-4)


def test_an_unknown_lora_is_refused_by_name(model):
    with pytest.raises(InvalidInputError, match=r"no LoRA 'oil'; it has ink, clay, wool") as refused:
        sample(Or((Prompt("a", "m"), Prompt("a", "m", (("oil", 1.0),)))), SamplingParams(steps=1), {"m": model})
    assert refused.value.field == ("terms", 1, "lora")


def test_a_lora_that_is_missing_or_does_not_fit_leaves_the_model_and_the_others(folder, model, tmp_path):
    cut, other = tmp_path / "cut.safetensors", tmp_path / "other.safetensors"
    cut.write_bytes((folder / "ink.safetensors").read_bytes()[:100])
    narrower = {key: weight[..., :-1].contiguous() for key, weight in load_file(folder / "ink.safetensors").items()}
    save_file(narrower, other)
    loras = {"none": tmp_path / "none.safetensors", "cut": cut, "other": other, "ink": folder / "ink.safetensors"}
    mixed = Catalog([Entry("m", folder / "sd", loras=loras)], "cpu").get("m")
    assert mixed.card.adapters == ("ink",)
    broken = mixed.card.broken_adapters
    assert list(broken) == ["none", "cut", "other"]
    assert broken["none"] == "there is no file none.safetensors"
    assert all("does not fit" in broken[name] for name in ("cut", "other"))
    assert str(tmp_path) not in str(broken)
    applied = [{"ink": 1.0}, {}]
    torch.testing.assert_close(mixed.predict_noise(*rows(mixed, applied)), model.predict_noise(*rows(model, applied)))


def test_dora_rows_are_grouped_and_right(folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None)
    file = write_lora(pipeline, tmp_path, "dora", 7, dora=True)
    options = LoadOptions({"dora": file, "ink": folder / "ink.safetensors"})
    model = StableDiffusion.load(folder / "sd", CPU, torch.float32, options)
    applied = [{"dora": 1.0}, {"ink": 1.0}, {}]
    torch.testing.assert_close(
        model.predict_noise(*rows(model, applied)), each_alone(model, applied), rtol=1e-4, atol=1e-4
    )
