import json
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.card import DEFAULT_GUIDANCE_SCALES, DEFAULT_GUIDANCE_START, Defaults, Guidance
from pipelines.catalog import Catalog
from pipelines.composition import And, Or, Prompt
from pipelines.entry import BUILTIN_FOLDER, BUILTIN_GUIDANCE, BUILTIN_MODELS, FAMILIES, Entry, Family
from pipelines.errors import CatalogError, ModelLoadError, UnknownModelError
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.unconditional import Unconditional
from pipelines.kernel import Kernel
from pipelines.params import SamplingParams
from pipelines.residency import MemoryPolicy
from pipelines.sampler import sample
from tests.pipelines.families import tiny

NAMES = ("one", "two", "three")
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / "superdiff.toml"
        path.write_text(text)
        return path

    return written


def test_a_catalogue_names_builtin_models_and_folders_beside_it(write, tmp_path):
    catalog = Catalog.read(
        write(
            '[models.mine]\nsource = "weights/mine"\n[models.shapes]\nsource = "builtin:shapes"\ndtype = "bfloat16"\n'
        )
    )
    assert catalog.names == ("mine", "shapes")
    assert catalog.entry("mine").source == tmp_path / "weights/mine"
    assert catalog.entry("shapes").source == BUILTIN_FOLDER / "shapes"
    assert catalog.entry("shapes").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models = 3", "at least one"),
        ("", "at least one"),
        ("[server]\nport = 1", "nothing else"),
        ("[models]\nshapes = 3", "models.shapes: must be a table"),
        ("[models.a]", "models.a.source: missing"),
        ('[models.a]\nsource = "x"\nsorce = "y"', "models.a.sorce: there is no such key; allowed are source"),
        ('[models.a]\nsource = "builtin:cats"', "builtin models are emoji, shapes"),
        ('[models.a]\nsource = "x"\nfamily = "gan"', "'gan' is not allowed; it must be one of stable_diffusion"),
        ('[models.a]\nsource = "x"\ndtype = "int4"', "'int4' is not allowed; it must be one of float32"),
        ('[models.a]\nsource = "x"\ndtype = 16', "models.a.dtype: 16 is not allowed"),
        ('[models.a]\nsource = "x"\ndevice = "gpu"', "models.a.device: 'gpu' is not allowed; it must be cpu"),
        ("[models.a\n", "not TOML"),
        ('[models.a]\nsource = "x"\nsteps = 0', "models.a.steps: 0 is not allowed; it must be a whole number from 1"),
        ('[models.a]\nsource = "x"\ndata_std = 0', "models.a.data_std: 0 is not allowed"),
        ('[models.a]\nsource = "x"\nforward_rows = 0', "models.a.forward_rows: 0 is not allowed"),
        ('[models.a]\nsource = "x"\nsteps = true', "models.a.steps: True is not allowed"),
        ('[models.a]\nsource = "x"\nkernel = "magic"', "one of calibrated, posterior"),
        ('[models.a]\nsource = "x"\n[models.a.loras]\nink = "ink.ckpt"', "a table of names to .safetensors files"),
        ('[models.a]\nsource = "hub:x"', "must be hub:OWNER/NAME"),
        (
            '[models.a]\nsource = "x.safetensors"',
            "models.a.family: missing; a .safetensors file does not name its family",
        ),
    ],
)
def test_a_wrong_catalogue_says_what_is_wrong(write, text, told):
    with pytest.raises(CatalogError, match=told):
        Catalog.read(write(text))


def test_a_missing_catalogue_says_so(tmp_path):
    with pytest.raises(CatalogError, match="no such catalogue"):
        Catalog.read(tmp_path / "none.toml")


def test_an_unknown_name_lists_the_known(write):
    catalog = Catalog.read(write('[models.a]\nsource = "x"'))
    with pytest.raises(UnknownModelError, match="no model named 'b'; the catalogue holds a"):
        catalog.get("b")


def test_families_are_read_from_the_folder_or_named(write, tmp_path):
    tiny.stable_diffusion(tmp_path / "sd")
    tiny.unconditional(tmp_path / "ddpm")
    catalog = Catalog.read(
        write(
            '[models.a]\nsource = "sd"\n[models.b]\nsource = "ddpm"\n'
            '[models.c]\nsource = "sd"\nfamily = "unconditional"\n'
        )
    )
    assert catalog.loaded("a") is None
    assert isinstance(catalog.get("a"), StableDiffusion)
    assert isinstance(catalog.get("b"), Unconditional)
    assert catalog.loaded("a") is catalog.get("a")
    with pytest.raises(ModelLoadError, match="c: its network is a UNet2DConditionModel"):
        catalog.get("c")


def test_a_model_is_loaded_once_however_many_ask(write, tmp_path):
    tiny.stable_diffusion(tmp_path / "sd")
    catalog = Catalog.read(write('[models.a]\nsource = "sd"'))
    got = []
    threads = [threading.Thread(target=lambda: got.append(catalog.get("a"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6
    assert len(set(map(id, got))) == 1


def test_models_loaded_at_once_leave_the_process_as_it_was(write, tmp_path):
    """Loading swaps torch's default type and how modules are made; two at once must not leave it swapped."""
    for name in ("one", "two", "three"):
        tiny.stable_diffusion(tmp_path / name)
    lines = [f'[models.{n}]\nsource = "{n}"\ndtype = "{d}"\n' for n, d in zip(NAMES, DTYPES, strict=True)]
    catalog = Catalog.read(write("".join(lines)))
    threads = [threading.Thread(target=catalog.get, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_default_dtype() == torch.float32
    assert torch.nn.Linear(1, 1).weight.device.type == "cpu"
    assert all(catalog.loaded(name) for name in NAMES)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (
            lambda f: _change(f / "scheduler/scheduler_config.json", prediction_type="flow_prediction"),
            "known are epsilon",
        ),
        (
            lambda f: _change(f / "scheduler/scheduler_config.json", beta_schedule="sigmoid"),
            "cannot be loaded: sigmoid",
        ),
        (lambda f: _change(f / "model_index.json", _class_name="KolorsPipeline"), "no family loads a KolorsPipeline"),
        (lambda f: (f / "model_index.json").write_text("[]"), "names no pipeline class"),
        (lambda f: (f / "model_index.json").unlink(), r"model_index\.json there is missing"),
    ],
)
def test_whatever_goes_wrong_in_loading_names_the_model_and_no_path(write, tmp_path, harm, told):
    tiny.stable_diffusion(tmp_path / "sd")
    harm(tmp_path / "sd")
    with pytest.raises(ModelLoadError, match=f"^mine: .*{told}") as refused:
        Catalog.read(write('[models.mine]\nsource = "sd"')).get("mine")
    assert str(tmp_path) not in str(refused.value)


def test_a_device_that_is_not_there_and_a_source_that_is_a_file(write, tmp_path):
    tiny.stable_diffusion(tmp_path / "sd")
    (tmp_path / "file.safetensors").write_bytes(b"x")
    catalog = Catalog.read(
        write(
            '[models.far]\nsource = "sd"\ndevice = "cuda:77"\n[models.file]\nsource = "file.safetensors"\n'
            'family = "stable_diffusion"'
        )
    )
    for name in ("far", "file"):
        with pytest.raises(ModelLoadError, match=f"^{name}: ") as refused:
            catalog.get(name)
        assert str(tmp_path) not in str(refused.value)


def _change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_the_builtin_models_load_like_any_folder(name):
    model = Catalog.builtin("cpu").get(name)
    assert isinstance(model, StableDiffusion)
    assert (model.card.width, model.card.height) == (64, 64)
    assert model.card.calibrated
    shares = model.card.space == Catalog.builtin("cpu").get("shapes").card.space
    assert shares == name.startswith("shapes")


def test_the_styles_of_emoji_are_loras_that_ship(tmp_path):
    given = {"source": "builtin:emoji", "loras": {"mine": "mine.safetensors"}}
    assert set(Entry.parse("emoji", {"source": "builtin:emoji"}, tmp_path).loras) == {"fluent", "noto"}
    assert set(Entry.parse("emoji", given, tmp_path).loras) == {"fluent", "noto", "mine"}
    assert not Entry.parse("emoji", {"source": "builtin:emoji", "compile": True}, tmp_path).loras
    assert Catalog.builtin("cpu").entry("emoji").loras.keys() == {"fluent", "noto"}


def test_a_builtin_model_brings_its_own_guidance_and_its_table_overrides_it(tmp_path):
    catalog = Catalog.builtin("cpu")
    cards = {"emoji": catalog.get("emoji").card}
    asked = catalog.defaults(And((Prompt("a cat", "emoji"), Prompt("a dog", "emoji"))), cards)
    assert asked.guidance_scale == 2 * BUILTIN_GUIDANCE["emoji"]
    table = {"source": "builtin:emoji", "guidance_scale": 5.0}
    assert Entry.parse("pictograms", table, tmp_path).guidance_scale == 5.0


def test_the_builtin_models_are_small_and_store_shared_parts_once():
    files = [p for p in BUILTIN_FOLDER.rglob("*") if p.is_file() and not any(q.is_symlink() for q in p.parents)]
    emoji = [p for p in files if BUILTIN_FOLDER / "emoji" in p.parents]
    assert sum(p.stat().st_size for p in emoji) <= 30 * 2**20
    assert sum(p.stat().st_size for p in files if p not in emoji) <= 40 * 2**20
    # The three models of shapes have one autoencoder.
    assert len([p for p in files if p.parent.name == "vae" and p.suffix == ".safetensors"]) == 2


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def three(tmp_path):
    for seed, name in enumerate(NAMES):
        tiny.stable_diffusion(tmp_path / name, seed=seed)
    return [Entry(name, tmp_path / name) for name in NAMES]


def held(catalog):
    return [name for name in catalog.names if catalog.loaded(name)]


def test_beyond_the_budget_the_longest_unused_model_goes(three):
    clock = Clock()
    size = Catalog(three, "cpu").get("one").card.memory
    catalog = Catalog(three, "cpu", MemoryPolicy(budget=2.5 * size), clock)
    for clock.now, name in enumerate(NAMES[:2]):
        catalog.get(name)
    catalog.hold(["one"])
    clock.now = 5
    catalog.release(["one"])
    catalog.get("three")
    assert held(catalog) == ["one", "three"]
    assert catalog.get("two") is not None
    assert held(catalog) == ["two", "three"]


def test_a_model_that_is_held_or_kept_stays(three):
    size = Catalog(three, "cpu").get("one").card.memory
    three[1] = replace(three[1], keep=True)
    catalog = Catalog(three, "cpu", MemoryPolicy(budget=0.5 * size), Clock())
    catalog.hold(["one"])
    for name in NAMES:
        catalog.get(name)
    # The newest is not unloaded under whoever asked for it.
    assert held(catalog) == list(NAMES)
    catalog.release(["one"])
    assert held(catalog) == ["two"]


def test_what_models_share_counts_once(tmp_path):
    tiny.stable_diffusion(tmp_path / "one")
    both = [Entry("one", tmp_path / "one"), Entry("same", tmp_path / "one", channels_last=True)]
    model = Catalog(both, "cpu").get("one")
    unet = sum(weight.nbytes for weight in model.networks[0].parameters())
    catalog = Catalog(both, "cpu", MemoryPolicy(budget=model.card.memory + unet), Clock())
    for name in catalog.names:
        catalog.get(name)
    assert held(catalog) == ["one", "same"]
    catalog = Catalog(both, "cpu", MemoryPolicy(budget=model.card.memory + unet - 1), Clock())
    for name in catalog.names:
        catalog.get(name)
    assert held(catalog) == ["same"]


def test_why_a_model_cannot_be_loaded_is_told_without_folders(tmp_path):
    tiny.stable_diffusion(tmp_path / "secret/sd")
    (tmp_path / "secret/sd/unet/config.json").unlink()
    with pytest.raises(ModelLoadError) as refused:
        Catalog([Entry("m", tmp_path / "secret/sd")], "cpu").get("m")
    assert "config.json" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_idle_models_go_after_their_time(three):
    clock = Clock()
    catalog = Catalog(three, "cpu", MemoryPolicy(idle_s=10), clock)
    for name in NAMES:
        catalog.get(name)
    catalog.hold(["two"])
    clock.now = 9
    assert catalog.unload_idle() == []
    clock.now = 10
    assert catalog.unload_idle() == ["one", "three"]
    assert held(catalog) == ["two"]
    catalog.release(["two"])
    assert catalog.unload_idle() == []
    clock.now = 20
    assert catalog.unload_idle() == ["two"]


def test_unloading_returns_the_memory(tmp_path):
    tiny.stable_diffusion(tmp_path / "one")
    catalog = Catalog([Entry("one", tmp_path / "one")], "cpu", MemoryPolicy(idle_s=0.001), clock := Clock())
    network = weakref.ref(catalog.get("one")._unet)
    clock.now = 1
    assert catalog.unload_idle() == ["one"]
    assert network() is None


class Whereabouts(torch.nn.Module):
    """Weights that say where they were last sent."""

    def __init__(self, numbers):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(numbers))
        self.at = "cuda"

    def to(self, device):
        self.at = torch.device(device).type
        return self


class Movable(SimpleNamespace):
    """A model of one network of its own and one that all share."""

    shared = Whereabouts(1)

    @classmethod
    def load(cls, *_):
        return cls(networks=[Whereabouts(10), cls.shared], card=SimpleNamespace(memory=44))


@pytest.fixture
def movable(monkeypatch):
    monkeypatch.setitem(FAMILIES, "movable", Family("None", "Movable"))
    monkeypatch.setitem(sys.modules, "pipelines.families.movable", sys.modules[__name__])
    Movable.shared.at = "cuda"
    return [Entry(name, Path(name), "movable", device="cuda") for name in NAMES[:2]]


def places(*models):
    return [[network.at for network in model.networks] for model in models]


def test_offloaded_models_wait_on_the_cpu_and_come_back(movable):
    catalog = Catalog(movable, "cpu", MemoryPolicy(budget=60, offload=True), clock := Clock())
    one = catalog.get("one")
    clock.now = 1
    two = catalog.get("two")
    assert held(catalog) == ["two"]
    # What both share stays with the one that stays.
    assert places(one, two) == [["cpu", "cuda"], ["cuda", "cuda"]]
    clock.now = 2
    assert catalog.get("one") is one
    assert held(catalog) == ["one"]
    assert places(one, two) == [["cuda", "cuda"], ["cpu", "cuda"]]
    catalog.hold(["one"])
    catalog.get("two")
    assert held(catalog) == ["one", "two"]


def test_what_computes_on_the_cpu_is_unloaded_not_moved(three):
    catalog = Catalog(three, "cpu", MemoryPolicy(idle_s=1, offload=True), clock := Clock())
    network = weakref.ref(catalog.get("one")._unet)
    clock.now = 2
    assert catalog.unload_idle() == ["one"]
    assert network() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_offloaded_model_draws_the_same(three):
    catalog = Catalog(three[:1], "cuda", MemoryPolicy(idle_s=1, offload=True), clock := Clock())
    params = SamplingParams(steps=2, seed=0)

    def drawn():
        return sample(Prompt("a red circle", "one"), params, {"one": catalog.get("one")}).z

    before = drawn()
    clock.now = 2
    assert catalog.unload_idle() == ["one"]
    assert torch.equal(drawn(), before)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[memory]\nbudget = 3", "memory.budget: there is no such key; allowed are budget_gib, idle_s, offload"),
        ("[memory]\nbudget_gib = 0", "memory.budget_gib: 0 is not allowed; it must be a number above 0"),
        ("[memory]\nbudget_gib = true", "memory.budget_gib: True is not allowed"),
        ("[memory]\noffload = 1", "memory.offload: 1 is not allowed; it must be true or false"),
        ('[memory]\nidle_s = "long"', "memory.idle_s: 'long' is not allowed"),
    ],
)
def test_a_wrong_memory_table_says_what_is_wrong(write, text, told):
    with pytest.raises(CatalogError, match=told):
        Catalog.read(write(f'{text}\n[models.a]\nsource = "x"'))


def test_every_key_of_an_entry_is_read(write, tmp_path):
    catalog = Catalog.read(
        write(
            '[models.a]\nsource = "a.safetensors"\nfamily = "stable_diffusion"\nsteps = 30\nguidance_scale = 7\n'
            'kernel = "posterior"\nspace = "sd"\nconfig = "sd15"\ntiling = true\nclip_skip = 1\nkeep = true\n'
            "forward_rows = 12\ndata_std = 0.8\n"
            '[models.a.loras]\nink = "ink.safetensors"\n'
            '[models.b]\nsource = "hub:somebody/something"\nrevision = "v1"\n'
        )
    )
    a, b = catalog.entry("a"), catalog.entry("b")
    assert a.source == tmp_path / "a.safetensors"
    assert a.loras == {"ink": tmp_path / "ink.safetensors"}
    assert (a.steps, a.guidance_scale, a.kernel, a.space, a.config) == (30, 7, "posterior", "sd", tmp_path / "sd15")
    assert a.tiling
    assert a.keep
    assert (a.forward_rows, b.forward_rows) == (12, None)
    assert (a.data_std, b.data_std) == (0.8, None)
    assert a.clip_skip == 1
    assert (b.hub, b.revision) == ("somebody/something", "v1")


def test_the_defaults_of_a_request_are_the_lead_model_s_times_what_must_hold_together(tmp_path):
    tiny.stable_diffusion(tmp_path / "sd")
    tiny.flux(tmp_path / "flux")
    catalog = Catalog(
        [
            Entry("sd", tmp_path / "sd"),
            Entry("own", tmp_path / "sd", steps=30, guidance_scale=3.0, kernel=Kernel.POSTERIOR),
            Entry("unguided", tmp_path / "sd", guidance_scale=1.0),
            Entry("flux", tmp_path / "flux"),
        ],
        "cpu",
    )

    cards = {name: catalog.get(name).card for name in catalog.names}

    def defaults(name, operator=None, count=2):
        leaf = Prompt("", name)
        return catalog.defaults(leaf if operator is None else operator((leaf,) * count), cards)

    assert defaults("sd") == defaults("sd", Or) == Defaults()
    together = replace(Defaults(), guidance_scale=2 * Defaults().guidance_scale, guidance_start=DEFAULT_GUIDANCE_START)
    assert defaults("sd", And) == together
    assert defaults("own") == Defaults(30, 3.0, 0.0, Kernel.POSTERIOR)
    assert defaults("own", And, 3) == Defaults(30, 9.0, DEFAULT_GUIDANCE_START, Kernel.POSTERIOR)
    # Guidance of 1 is none, and so is any part of it.
    assert defaults("unguided", And) == replace(Defaults(), guidance_scale=1.0)
    # The first leaf's model leads.
    mixed = And((Prompt("", "own"), Prompt("", "sd")))
    assert catalog.defaults(mixed, cards).steps == 30
    # A distilled scale is an input of the network, which knows those that it was trained with.
    assert defaults("flux", And) == replace(Defaults(), guidance_scale=DEFAULT_GUIDANCE_SCALES[Guidance.DISTILLED])


def test_a_hub_that_cannot_be_reached_is_told(write, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    catalog = Catalog.read(write('[models.b]\nsource = "hub:somebody/something"\nrevision = "v1"\n'))
    with pytest.raises(ModelLoadError, match=r"^b: somebody/something at v1 is not in the cache"):
        catalog.get("b")
