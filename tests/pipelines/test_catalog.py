import json
import threading

import pytest
import torch

from pipelines.catalog import BUILTIN_FOLDER, BUILTIN_MODELS, Catalog
from pipelines.errors import CatalogError, ModelLoadError, UnknownModelError
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.unconditional import Unconditional
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
    assert catalog.entry("mine").folder == tmp_path / "weights/mine"
    assert catalog.entry("shapes").folder == BUILTIN_FOLDER / "shapes"
    assert catalog.entry("shapes").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models = 3", "at least one"),
        ("", "at least one"),
        ("[server]\nport = 1", "nothing else"),
        ("[models]\nshapes = 3", "models.shapes: must be a table"),
        ("[models.a]", "models.a.source: missing"),
        ('[models.a]\nsource = "x"\nsorce = "y"', "models.a.sorce: allowed keys are source"),
        ('[models.a]\nsource = "builtin:cats"', "builtin models are shapes"),
        ('[models.a]\nsource = "x"\nfamily = "gan"', "'gan' is unknown; allowed are stable_diffusion"),
        ('[models.a]\nsource = "x"\ndtype = "int4"', "'int4' is unknown; allowed are float32"),
        ('[models.a]\nsource = "x"\ndtype = 16', "models.a.dtype: allowed keys"),
        ('[models.a]\nsource = "x"\ndevice = "gpu"', "models.a.device: 'gpu' is no device"),
        ("[models.a\n", "not TOML"),
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
        (lambda f: _change(f / "model_index.json", _class_name="FluxPipeline"), "no family loads a FluxPipeline"),
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
        write('[models.far]\nsource = "sd"\ndevice = "cuda:77"\n[models.file]\nsource = "file.safetensors"')
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
    assert model.card.space == Catalog.builtin("cpu").get("shapes").card.space


def test_the_builtin_models_are_small_and_store_shared_parts_once():
    files = [p for p in BUILTIN_FOLDER.rglob("*") if p.is_file() and not any(q.is_symlink() for q in p.parents)]
    assert sum(p.stat().st_size for p in files) <= 40 * 2**20
    assert len([p for p in files if p.parent.name == "vae" and p.suffix == ".safetensors"]) == 1
