"""Forward-mode derivatives of every family's network, against finite differences of what it predicts."""

from functools import partialmethod

import pytest
import torch
from torch import nn

from pipelines.catalog import Catalog
from pipelines.entry import Entry
from pipelines.errors import InvalidInputError
from pipelines.families.analytic import AnalyticModel, GaussianMixture
from pipelines.families.derivative import derivative
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.model import LoadOptions
from pipelines.networks import collate
from tests.pipelines.families import tiny
from tests.pipelines.families.test_lora import write_lora

CPU = torch.device("cpu")
STEP = 0.03
FAMILIES = {
    "stable diffusion": tiny.stable_diffusion,
    "stable diffusion xl": tiny.stable_diffusion_xl,
    "stable diffusion 3": tiny.stable_diffusion_3,
    "pixart": tiny.pixart,
    "flux": tiny.flux,
    "unconditional": tiny.unconditional,
}


def asked(model, adapters=({}, {})):
    """Two rows at two levels, with a direction each."""
    card = model.card
    g = torch.Generator().manual_seed(0)
    z, direction = torch.randn(2, 2, *card.sample_shape(card.width, card.height), generator=g)
    text = "a red circle" if card.takes_prompts else ""
    condition = collate([(model.encode_prompts([text], dict(scales)), 1) for scales in adapters])
    if card.guidance == "distilled":
        condition["guidance"] = torch.full((2,), 3.0)
    return z, torch.tensor([0.6, 1.9], dtype=torch.float64), condition, direction


def check(model, z, sigma, condition, direction):
    """Central differences of float32 networks err by the step squared and by rounding over the step: 1 % of the whole
    is some ten times what is seen.
    """
    predicted, along = model.differentiate_noise(z, sigma, condition, direction)
    torch.testing.assert_close(predicted, model.predict_noise(z, sigma, condition), rtol=1e-4, atol=1e-4)
    ahead, behind = (model.predict_noise(z + sign * STEP * direction, sigma, condition) for sign in (1, -1))
    expected = (ahead - behind) / (2 * STEP)
    assert expected.norm() > 0
    assert (along - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_network_has_its_derivative(family, tmp_path):
    FAMILIES[family](tmp_path / "m")
    model = Catalog([Entry("m", tmp_path / "m")], "cpu").get("m")
    check(model, *asked(model))


def test_a_mixture_s_derivative_is_exact():
    means = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = AnalyticModel(GaussianMixture(means, torch.tensor([0.2, 0.5, 1.0]), torch.tensor([1.0, 2.0, 3.0])))
    g = torch.Generator().manual_seed(0)
    z, direction = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    sigma, condition = torch.full((4,), 0.7, dtype=torch.float64), model.encode_prompts([""] * 4)
    _, along = model.differentiate_noise(z, sigma, condition, direction)
    ahead, behind = (model.predict_noise(z + sign * 1e-5 * direction, sigma, condition) for sign in (1, -1))
    torch.testing.assert_close(along, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("adapters", [({"ink": 1.0}, {}), ({"ink": 1.0}, {"ink": 0.5})])
def test_rows_with_loras_have_their_own_derivatives(adapters, tmp_path):
    """One LoRA at one scale goes through peft in one batch; two scales go one after the other."""
    pipeline = tiny.stable_diffusion(tmp_path / "sd")
    options = LoadOptions({"ink": write_lora(pipeline, tmp_path, "ink", 0)})
    model = StableDiffusion.load(tmp_path / "sd", CPU, torch.float32, options)
    check(model, *asked(model, adapters))


def test_a_compiled_network_is_differentiated_as_it_was_written(tmp_path, monkeypatch):
    # As in test_speed: making machine code takes minutes.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    tiny.stable_diffusion(tmp_path / "m")
    plain, compiled = (Catalog([Entry("m", tmp_path / "m", compile=c)], "cpu").get("m") for c in (False, True))
    torch.testing.assert_close(
        compiled.differentiate_noise(*asked(compiled)), plain.differentiate_noise(*asked(plain)), rtol=1e-4, atol=1e-4
    )


def test_a_network_laid_out_channels_last_has_its_derivative(tmp_path):
    tiny.stable_diffusion(tmp_path / "m")
    model = Catalog([Entry("m", tmp_path / "m", channels_last=True)], "cpu").get("m")
    check(model, *asked(model))


def test_a_network_without_forward_derivatives_is_refused():
    """torch.cdist has none."""
    z = torch.randn(2, 3)
    with pytest.raises(InvalidInputError, match="no forward-mode derivative") as refused:
        derivative(lambda rows: torch.cdist(rows, rows), z, z)
    assert refused.value.field == ("kernel",)


def test_a_network_that_silences_derivatives_is_refused():
    """Under torch.inference_mode torch's derivatives vanish without an error."""
    z = torch.randn(2, 3)
    with pytest.raises(InvalidInputError, match="no forward-mode derivative"):
        derivative(torch.inference_mode()(lambda rows: rows**2), z, z)
