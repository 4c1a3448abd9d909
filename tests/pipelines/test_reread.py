"""A catalogue read anew: what is the same is shared, what failed is tried again, and who has the earlier keeps it."""

import os

import pytest

from pipelines.card import Card
from pipelines.catalog import Catalog, Changes
from pipelines.composition import Prompt
from pipelines.errors import CatalogError, ModelLoadError, ModelUnavailableError
from pipelines.families import unconditional
from pipelines.params import SamplingParams
from pipelines.plan import make_plan
from tests.pipelines.families import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny.unconditional(folder / "a")
    return folder


@pytest.fixture
def path(saved, tmp_path):
    """A catalogue of one small model."""
    (tmp_path / "a").symlink_to(saved / "a")
    return written(tmp_path / "superdiff.toml", "a")


def written(path, *names, extra=""):
    path.write_text("".join(f'[models.{name}]\nsource = "a"\n{extra}' for name in names))
    return path


def reread(catalog):
    following = catalog.reread()
    return following, catalog.give_way(following)


def test_the_same_models_are_shared_and_others_come_and_go(path):
    catalog = Catalog.read(path, "cpu")
    model = catalog.get("a")
    written(path, "a", "b")
    following, changes = reread(catalog)
    assert changes == Changes(("b",), (), ())
    assert following.loaded("a") is model
    assert following.get("b") is not model
    assert catalog.names == ("a",)
    last, changes = reread(written(path, "b") and following)
    assert changes == Changes((), (), ("a",))
    assert last.names == ("b",)
    assert last.unload_idle() == ["a"]


def test_a_changed_entry_is_another_model_and_its_holders_keep_the_old(path):
    catalog = Catalog.read(path, "cpu")
    catalog.hold(["a"])
    old = catalog.get("a")
    following, changes = reread(written(path, "a", extra="data_std = 2.0\n") and catalog)
    assert changes == Changes((), ("a",), ())
    assert following.loaded("a") is None
    new = following.get("a")
    assert (catalog.get("a") is old, following.loaded("a") is new) == (True, True)
    assert following.unload_idle() == []
    catalog.release(["a"])
    assert following.unload_idle() == ["a"]
    assert following.loaded("a") is new


def test_changed_files_of_an_unchanged_entry_are_seen(path, tmp_path):
    catalog = Catalog.read(path, "cpu")
    catalog.get("a")
    assert reread(catalog)[1] == Changes((), (), ())
    following, _ = reread(catalog)
    file = next((tmp_path / "a").rglob("*.safetensors"))
    os.utime(file, (1, 1))
    assert reread(following)[1] == Changes((), ("a",), ())


@pytest.mark.parametrize("text", ["models = 3", "[models.a", '[models.a]\nsource = "a"\ndtype = "int4"', None])
def test_a_file_that_makes_no_sense_leaves_all_as_it_was(path, text):
    catalog = Catalog.read(path, "cpu")
    model = catalog.get("a")
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CatalogError):
        catalog.reread()
    assert catalog.loaded("a") is model


def test_a_model_that_cannot_be_loaded_is_tried_once_until_the_catalogue_is_read_anew(path, monkeypatch):
    tried = []

    def load(*_):
        tried.append(1)
        raise ModelLoadError("its weights are truncated")

    catalog = Catalog.read(path, "cpu")
    with monkeypatch.context() as broken:
        broken.setattr(unconditional.Unconditional, "load", load)
        for _ in range(2):
            with pytest.raises(ModelLoadError, match=r"^a: its weights are truncated$"):
                catalog.get("a")
        assert len(tried) == 1
        assert catalog.failure("a") == "a: its weights are truncated"
    following, changes = reread(catalog)
    assert (changes.changed, following.failure("a")) == (("a",), None)
    assert following.get("a")


def test_what_may_pass_is_tried_again_each_time(path, monkeypatch):
    def load(*_):
        raise MemoryError

    catalog = Catalog.read(path, "cpu")
    with monkeypatch.context() as short:
        short.setattr(unconditional.Unconditional, "load", load)
        with pytest.raises(ModelUnavailableError, match="a: there is too little memory for it now"):
            catalog.get("a")
    assert catalog.failure("a") is None
    assert catalog.get("a")


def test_a_request_that_names_a_broken_lora_says_why(saved):
    model = Catalog.read(written(saved / "superdiff.toml", "a"), "cpu").get("a")
    facts = {name: getattr(model.card, name) for name in Card.__dataclass_fields__}
    card = Card(**facts | {"takes_prompts": True, "broken_adapters": {"ink": "there is no file ink.safetensors"}})
    params = SamplingParams(steps=2, guidance_scale=1.0)
    assert make_plan(Prompt("a", "m"), params, {"m": card})
    with pytest.raises(ModelLoadError, match="the model 'm': the LoRA 'ink' cannot be loaded: there is no file"):
        make_plan(Prompt("a", "m", (("ink", 1.0),)), params, {"m": card})
