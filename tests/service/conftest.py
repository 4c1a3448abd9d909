import pytest
import torch

from pipelines.catalog import Catalog
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.unconditional import Unconditional
from tests.pipelines.families import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two Stable Diffusion models over one autoencoder, and a pixel model; saved on disk."""
    root = tmp_path_factory.mktemp("models")
    tiny.stable_diffusion(root / "one", seed=0, hearing=8)
    two = tiny.stable_diffusion(root / "two", seed=0, prediction="v_prediction", hearing=8)
    torch.manual_seed(1)
    for parameter in two.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    two.save_pretrained(root / "two")
    tiny.unconditional(root / "pixels")
    return root


@pytest.fixture(scope="session")
def models(folders):
    """The models of ``folders``, loaded."""
    return {
        "one": StableDiffusion.load(folders / "one", CPU, torch.float32),
        "two": StableDiffusion.load(folders / "two", CPU, torch.float32),
        "pixels": Unconditional.load(folders / "pixels", CPU, torch.float32),
    }


@pytest.fixture
def catalog(models):
    """A catalogue of loaded models."""
    return Catalog.of(models)
