"""What users install: the two zips."""

import ast
import configparser
import re
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from scripts.build_integrations import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    krita, comfyui = build(tmp_path_factory.mktemp("dist"))
    with ZipFile(krita) as one, ZipFile(comfyui) as two:
        yield {"krita": one, "comfyui": two}


def test_krita_finds_its_description_the_package_and_the_manual(zips):
    """The importer takes a package only where its folder has an entry of its own."""
    names = zips["krita"].namelist()
    description = configparser.ConfigParser()
    description.read_string(zips["krita"].read("superdiff_krita.desktop").decode())
    entry = description["Desktop Entry"]
    assert entry["ServiceTypes"] == "Krita/PythonPlugin"
    assert entry["X-Python-2-Compatible"] == "false"
    assert entry["Name"]
    library = entry["X-KDE-Library"]
    assert {f"{library}/", f"{library}/__init__.py", f"{library}/{entry['X-Krita-Manual']}"} <= set(names)


@pytest.mark.parametrize(("name", "path"), [("krita", "superdiff_krita/client.py"), ("comfyui", "superdiff/client.py")])
def test_both_carry_the_one_client_as_a_file(zips, name, path):
    assert zips[name].read(path) == (ROOT / "integrations/client.py").read_bytes()
    # Neither a link nor a cache of Python's is in there.
    assert all(entry.external_attr >> 28 != 0o12 for entry in zips[name].infolist())
    assert not [entry for entry in zips[name].namelist() if "__pycache__" in entry]


def test_the_same_sources_give_the_same_bytes(tmp_path):
    one, two = build(tmp_path / "one"), build(tmp_path / "two")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_comfyui_s_registry_finds_what_it_needs(zips):
    """As docs.comfy.org's specification of pyproject.toml has it."""
    names = zips["comfyui"].namelist()
    told = tomllib.loads(zips["comfyui"].read("superdiff/pyproject.toml").decode())
    project = told["project"]
    assert re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", project["name"])
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert f"superdiff/{project['license']['file']}" in names
    assert project["dependencies"] == []
    assert {"PublisherId", "DisplayName"} <= set(told["tool"]["comfy"])


def test_nothing_of_it_is_installed_with_the_service():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setup["packages"]["find"]["include"] == ["evaluation*", "pipelines*", "service*"]


PLAIN = [
    "client.py",
    *(f"krita/superdiff_krita/{name}.py" for name in ("asking", "geometry", "pixels", "png")),
]


def foreign(path):
    """What a file imports by an absolute name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_parts_need_the_standard_library_alone(name):
    assert set(foreign(ROOT / "integrations" / name)) <= sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted((ROOT / "integrations").rglob("*.py")), ids=lambda path: path.name)
def test_an_integration_knows_its_host_and_no_more(path):
    """Whatever the service is made of, it is known by its HTTP API only."""
    hosts = {"krita", "PyQt5"} if "krita" in path.parts else {"comfy", "numpy", "PIL", "torch"}
    assert set(foreign(path)) <= sys.stdlib_module_names | hosts
