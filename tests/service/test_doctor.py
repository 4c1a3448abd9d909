"""superdiff doctor: each problem that an operator can make, with what to do about it."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.diagnosis import Subject, diagnose, without_password
from service.settings import Settings


def problems(found):
    return {finding.about: finding.problem for findings in found.values() for finding in findings if finding.problem}


@pytest.fixture
def catalog(folders, tmp_path):
    """A model that is fine, one that is not there, one that is broken, and a LoRA that is not there."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/model_index.json").write_text("[]")
    path = tmp_path / "superdiff.toml"
    path.write_text(
        f'[models.fine]\nsource = "{folders / "one"}"\n[models.fine.loras]\nink = "ink.safetensors"\n'
        '[models.gone]\nsource = "gone"\n[models.broken]\nsource = "broken"\n'
    )
    return path


def test_each_model_and_lora_is_tried(catalog):
    found = problems(diagnose(Subject(Settings(catalog=catalog, device="cpu"), {})))
    assert found == {
        "LoRA ink of fine": "there is no file ink.safetensors",
        "model gone": "there is no such file or folder; mend `source` in the catalogue or put the model there",
        "model broken": "broken: its model_index.json names no pipeline class",
    }


def test_without_loading_files_are_looked_for(catalog):
    found = problems(diagnose(Subject(Settings(catalog=catalog, device="cpu"), {}, load=False)))
    assert set(found) == {"LoRA ink of fine", "model gone"}


def test_a_catalogue_that_makes_no_sense_and_a_setting_that_there_is_not(catalog):
    catalog.write_text("models = 3")
    environment = {"SUPERDIFF_RUNING_ROWS": "3", "SUPERDIFF_KEY": "k", "SUPERDIFF_REQUIRE_BROWSER": "1"}
    found = problems(diagnose(Subject(Settings(catalog=catalog, device="cpu"), environment)))
    assert set(found) == {"catalogue", "SUPERDIFF_RUNING_ROWS"}
    assert "the service does not start with it" in found["catalogue"]


def test_a_device_that_is_not_there(catalog):
    found = problems(diagnose(Subject(Settings(catalog=catalog, device="cuda:99"), {}, load=False)))
    assert "CUDA device" in found["device"]


def test_a_full_disk(catalog, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**33, 2**33 - 2**20, 2**20))
    found = problems(diagnose(Subject(Settings(catalog=catalog, device="cpu"), {}, load=False)))
    assert {"cache of the hub", "temporary files"} <= set(found)


def test_no_secret_is_shown():
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert without_password("127.0.0.1") == "127.0.0.1"


def test_the_page_the_document_and_the_exit_code(catalog, monkeypatch):
    monkeypatch.setenv("SUPERDIFF_CALLER_JOBS", "3")
    ended = CliRunner().invoke(app, ["doctor", "--no-load", "--device", "cpu", "--catalog", str(catalog)])
    assert ended.exit_code == 1
    assert "✗ model gone" in ended.stdout
    assert "✓ SUPERDIFF_CALLER_JOBS: 3" in ended.stdout
    assert "2 problems." in ended.stdout
    told = CliRunner().invoke(app, ["doctor", "--no-load", "--json", "--device", "cpu", "--catalog", str(catalog)])
    assert told.exit_code == 1
    assert json.loads(told.stdout)["problems"] == 2
    catalog.write_text('[models.shapes]\nsource = "builtin:shapes"\n')
    fine = CliRunner().invoke(app, ["doctor", "--no-load", "--device", "cpu", "--catalog", str(catalog)])
    assert (fine.exit_code, fine.stdout.splitlines()[-1]) == (0, "No problems.")
