"""superdiff doctor: each problem that an operator can make, with what to do about it."""

import asyncio
import json
import shutil

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.diagnosis import CHECKS, Subject, diagnose, without_password
from service.settings import Settings
from service.store.database import Database, _engine
from service.store.opening import open_stores
from service.store.schema import VERSION
from tests.postgres import *  # noqa: F403
from tests.service.store.made import job


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


def database(url):
    settings = Settings(database=url)
    found = list(CHECKS["database"](Subject(settings, {})))
    assert all("\n" not in f"{each.told}{each.problem}" for each in found)
    return [(each.about, each.told.removeprefix(without_password(url)).lstrip(", "), each.problem) for each in found]


async def _use(url):
    stores = await open_stores(url)
    await stores.jobs.add(job("a"))
    await stores.jobs.add(job("b"))
    await stores.jobs.request_cancel("b", 1.0)
    await stores.close()


def says(version):
    return f"UPDATE alembic_version SET version_num = '{version}'"  # noqa: S608


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_database_is_looked_at_and_left_as_it_is(kind, tmp_path, request):
    url = request.getfixturevalue("postgres_url") if kind == "postgres" else f"sqlite:///{tmp_path}/jobs.sqlite"
    before = "without tables yet: they are made" if kind == "postgres" else "not there yet: it is made"
    for _ in range(2):
        assert database(url) == [("database", f"{before} when the service starts", None)]
    assert list(tmp_path.iterdir()) == []
    asyncio.run(_use(url))
    for _ in range(2):
        assert database(url) == [("database", f"version {VERSION}", None), ("jobs", "1 queued, 1 cancelled", None)]
    asyncio.run(_changed(url, says("0001")))
    for _ in range(2):
        (_, told, problem), _ = database(url)
        assert told == f"version 0001, brought to {VERSION} at the next start; back it up before"
        assert problem is None
    asyncio.run(_changed(url, says("9999")))
    ((_, told, problem),) = database(url)
    assert told == "version 9999"
    assert "a newer version of this program has written it" in problem


async def _changed(url, statement):
    """Past what opening a store would do."""
    database = Database(_engine(url))
    async with database.write() as connection:
        await connection.exec_driver_sql(statement)
    await database.close()


def test_a_database_that_cannot_be_read_is_told_in_a_line(tmp_path, postgres_server):
    (tmp_path / "text").write_text("this is no database" * 99)
    (tmp_path / "folder").mkdir()
    cases = {
        f"sqlite:///{tmp_path}/text": "it cannot be read: file is not a database",
        f"sqlite:///{tmp_path}/folder": "it cannot be reached: ",
        f"postgresql://me:secret@/none?host={tmp_path}": "it cannot be reached: ",
        f"postgresql://superdiff@/nothere?host={postgres_server.folder}": "does not let the service in",
        "mysql://me:secret@host/jobs": "SUPERDIFF_DATABASE must be sqlite:///FILE, postgresql://… or memory:",
    }
    for url, told in cases.items():
        ((_, _, problem),) = database(url)
        assert told in problem
        assert problem.endswith("; the service does not start with it")
        assert "secret" not in problem
    assert database("memory:") == [("database", "jobs and keys end with the process", None)]


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
