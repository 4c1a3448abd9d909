"""What makes networks faster changes what they compute by rounding alone."""

from functools import partialmethod

import pytest
import torch
from torch._dynamo.utils import counters

from pipelines.catalog import Catalog
from pipelines.composition import And, Prompt
from pipelines.entry import Entry
from pipelines.params import SamplingParams
from pipelines.sampler import sample
from tests.pipelines.families import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed") / "sd"
    tiny.stable_diffusion(folder)
    return folder


def drawn(catalog, images=2, expression=None, **size):
    expression = expression or And((Prompt("a red circle", "m"), Prompt("a blue star", "m")))
    params = SamplingParams(steps=4, guidance_scale=3.0, seed=1, num_images=images, **size)
    return sample(expression, params, {"m": catalog.get("m")}).z


def plain(folder):
    return Catalog([Entry("m", folder)], "cpu")


def test_channels_last_draws_the_same(folder):
    fast = Catalog([Entry("m", folder, channels_last=True)], "cpu")
    assert fast.get("m").networks[0].conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    single = Prompt("a red circle", "m")
    torch.testing.assert_close(
        drawn(fast, expression=single), drawn(plain(folder), expression=single), rtol=1e-3, atol=1e-3
    )


def test_a_compiled_network_draws_the_same_and_is_compiled_once(folder, monkeypatch):
    # Traced as ever, but run as it was traced: making machine code of it takes minutes and is torch's own concern.
    compile_in_place = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_in_place, backend="eager"))
    compiled = Catalog([Entry("m", folder, compile=True)], "cpu")
    counters.clear()
    compiled.get("m")
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1
    single = Prompt("a red circle", "m")
    for given in ({"images": 1}, {"images": 3}, {"images": 2, "width": 24, "height": 16}):
        for expression in (None, single):
            got = drawn(compiled, expression=expression, **given)
            torch.testing.assert_close(got, drawn(plain(folder), expression=expression, **given), rtol=1e-3, atol=1e-3)
    one_row = SamplingParams(steps=2, guidance_scale=1.0, seed=1)
    got, expected = (sample(single, one_row, {"m": c.get("m")}).z for c in (compiled, plain(folder)))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == graphs


def test_however_many_models_are_compiled_each_is(folder, monkeypatch):
    compile_in_place = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_in_place, backend="eager"))
    names = ("one", "two")
    catalog = Catalog([Entry(name, folder, compile=True) for name in names], "cpu")
    graphs = []
    # By default torch stops at eight of a class; with a limit of one the second is one too many already.
    with torch._dynamo.config.patch(recompile_limit=1):
        for name in names:
            counters.clear()
            catalog.get(name)
            graphs.append(counters["stats"]["unique_graphs"])
    assert min(graphs) == max(graphs) >= 1


def test_fast_is_the_default_of_entries_that_do_not_say(folder, monkeypatch):
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        catalog = Catalog(
            [Entry("m", folder), Entry("own", folder, dtype="float32", channels_last=False)], "cpu", fast=True
        )
        fast, own = (catalog.get(name).networks[0].conv_in.weight for name in catalog.names)
        assert (fast.dtype, own.dtype) == (expected, torch.float32)
        assert fast.is_contiguous(memory_format=torch.channels_last)
        assert not own.is_contiguous(memory_format=torch.channels_last)
        assert catalog.dtype("m") == str(expected).removeprefix("torch.")
