"""Who may know whom: read from the imports themselves, so that the house stays as it is drawn."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = {"service", "fastapi", "starlette", "pydantic", "pydantic_settings", "uvicorn", "asyncio"}
HUB = {"diffusers", "transformers"}


def imports(path):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def roots(path):
    return {module.split(".")[0] for module in imports(path)}


def files(*patterns):
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    assert found
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


@pytest.mark.parametrize("path", files("pipelines/**/*.py"))
def test_the_science_knows_nothing_of_the_web(path):
    assert not roots(path) & WEB


@pytest.mark.parametrize("path", files("pipelines/*.py", "service/**/*.py"))
def test_only_families_and_the_recipe_know_diffusers(path):
    assert not roots(path) & HUB


@pytest.mark.parametrize("path", files("pipelines/families/*.py"))
def test_families_know_nothing_of_sampling(path):
    forbidden = {"pipelines.sampler", "pipelines.superposition", "pipelines.composition"}
    assert not set(imports(path)) & forbidden


@pytest.mark.parametrize("path", files("service/api/*.py", "service/schemas.py", "service/engine/scheduler.py"))
def test_the_wire_and_the_scheduler_never_touch_torch(path):
    assert "torch" not in roots(path)


@pytest.mark.parametrize("path", files("service/**/*.py"))
def test_nothing_is_built_at_module_level(path):
    """No settings, engine, model or application singletons: module-level calls build only routers and constants."""
    allowed = {"APIRouter", "getLogger", "TypeVar", "Typer", "frozenset", "Path", "compile"}
    for node in ast.parse(path.read_text()).body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Call):
            name = value.func.attr if isinstance(value.func, ast.Attribute) else value.func.id
            assert name in allowed, f"{path}:{node.lineno} calls {name}"
