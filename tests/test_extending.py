"""The example of docs/extending.md, run as it stands."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from pipelines import entry
from pipelines.catalog import Catalog
from pipelines.composition import And, Or, Prompt
from pipelines.errors import InvalidInputError
from pipelines.kernel import Kernel
from pipelines.params import SamplingParams
from pipelines.sampler import sample

DOCUMENT = Path(__file__).parents[1] / "docs/extending.md"
MODULE = "pipelines.families.class_conditional"


@pytest.fixture
def family(tmp_path, monkeypatch):
    """The document's code as the module that it says it is, and its line among the families."""
    text = DOCUMENT.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (line,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "class_conditional.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(MODULE, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, MODULE, module)
    spec.loader.exec_module(module)
    name, pipeline, model = re.fullmatch(r'"(\w+)": Family\("(\w+)", "(\w+)"\),', line.strip()).groups()
    monkeypatch.setitem(entry.FAMILIES, name, entry.Family(pipeline, model))
    return name


def test_the_example_loads_and_composes(family, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=11,
    )
    DDPMPipeline(unet, DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path / "digits")
    catalog = Catalog([entry.Entry("digits", tmp_path / "digits", family)], "cpu")
    models = {"digits": catalog.get("digits")}
    three, seven = Prompt("3", "digits"), Prompt("7", "digits")
    params = SamplingParams(steps=4, guidance_scale=2.0, num_images=2, seed=1)
    for expression in (three, Or((three, seven)), And((three, seven))):
        samples = sample(expression, params, models)
        assert catalog.get("digits").decode(samples.z).shape == (2, 3, 8, 8)
    flow = replace(params, kernel=Kernel.PROBABILITY_FLOW)
    assert sample(Or((three, seven)), flow, models).log_density.isfinite().all()
    alone, other = (sample(prompt, params, models).z for prompt in (three, seven))
    assert not torch.equal(alone, other)
    with pytest.raises(InvalidInputError, match="a prompt must be a class, 0 to 9, got '10'"):
        sample(Prompt("10", "digits"), params, models)
