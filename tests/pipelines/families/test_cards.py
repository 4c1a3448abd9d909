"""Every family's card against the family's real networks."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from pipelines.errors import InvalidInputError
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.families.flow_matching import Flux, StableDiffusion3
from pipelines.families.pixart import PixArt
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.stable_diffusion_xl import StableDiffusionXL
from pipelines.families.unconditional import Unconditional
from tests.pipelines.families import tiny

CPU = torch.device("cpu")
FAMILIES = {
    "stable_diffusion": (StableDiffusion, {}),
    "inpainting": (StableDiffusion, {"inpainting": True}),
    "stable_diffusion_xl": (StableDiffusionXL, {}),
    "stable_diffusion_3": (StableDiffusion3, {}),
    "flux": (Flux, {}),
    "pixart": (PixArt, {}),
    "unconditional": (Unconditional, {}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def stored(request, tmp_path_factory):
    """A family, the folder of a model, and the pipeline that was saved there."""
    family, options = FAMILIES[request.param]
    make = tiny.stable_diffusion if request.param == "inpainting" else getattr(tiny, request.param)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return family, folder, make(folder, **options)


@pytest.fixture(scope="module")
def model(stored):
    family, folder, _ = stored
    return family.load(folder, CPU, torch.float32)


def drawable(card):
    """Sizes that the card says the model draws: square, wide and high."""
    m = card.multiple
    return [(card.width, card.height), *([(m, m), (3 * m, m), (m, 2 * m)] if m else [])]


def test_the_networks_have_the_shapes_that_the_card_tells(model):
    card = model.card
    for width, height in drawable(card):
        shape = card.sample_shape(width, height)
        clean = model.encode(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)))
        assert clean.shape[1:] == shape
        condition = {**model.encode_prompts([""]), **model.painted(shape)}
        if isinstance(model, Flux):
            condition["guidance"] = torch.tensor([3.5])
        assert model.predict_noise(clean, torch.tensor([1.0]), condition).shape[1:] == shape
        assert model.decode(clean).shape == (1, 3, height, width)


def test_a_card_is_plain_values_whatever_the_family(model):
    assert json.dumps(asdict(model.card))


def test_other_weights_of_the_same_kind_have_another_card(stored, model, tmp_path):
    family, folder, pipeline = stored
    assert family.load(folder, CPU, torch.float32).card == model.card
    network = pipeline.components.get("unet") or pipeline.transformer
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.001)
    pipeline.save_pretrained(tmp_path / "further")
    card = family.load(tmp_path / "further", CPU, torch.float32).card
    assert card.weights != model.card.weights
    assert replace(card, weights=model.card.weights) == model.card


def test_the_longest_side_is_the_longest_that_the_network_takes(tmp_path):
    tiny.stable_diffusion_3(tmp_path / "sd3")
    model = StableDiffusion3.load(tmp_path / "sd3", CPU, torch.float32)
    card, condition = model.card, model.encode_prompts([""])
    most = card.max_side
    model.predict_noise(torch.zeros(1, *card.sample_shape(most, card.multiple)), torch.ones(1), condition)
    beyond = most + card.multiple
    with pytest.raises(InvalidInputError, match=f"width must be at most {most} for this model, got {beyond}"):
        card.sample_shape(beyond, card.multiple)
    factor = card.space.factor
    with pytest.raises(ValueError, match="cannot be greater than"):
        model.predict_noise(torch.zeros(1, 4, card.multiple // factor, beyond // factor), torch.ones(1), condition)


def test_a_mixture_s_samples_are_vectors_of_its_dimension():
    mixture = GaussianMixture(torch.zeros(2, 7), 1.0)
    model = AnalyticModel(mixture)
    drawn = mixture.sample(3, torch.Generator().manual_seed(0))
    assert model.card.sample_shape(1, 1) == drawn.shape[1:]
    assert json.dumps(asdict(model.card))
