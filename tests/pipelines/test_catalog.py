import threading

import pytest

from pipelines.catalog import BUILTIN_FOLDER, BUILTIN_MODELS, Catalog
from pipelines.errors import CatalogError, ModelLoadError, UnknownModelError
from pipelines.families.stable_diffusion import StableDiffusion
from pipelines.families.unconditional import Unconditional
from tests.pipelines.families import tiny


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
    with pytest.raises(ModelLoadError, match="sd: its network takes a condition"):
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
