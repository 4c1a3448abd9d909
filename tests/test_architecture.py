"""Who may know whom: read from the imports themselves, so that the house stays as it is drawn."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = {"service", "fastapi", "starlette", "pydantic", "pydantic_settings", "uvicorn", "asyncio"}
HUB = {"diffusers", "transformers"}


@cache
def imports(path):
    """Every module that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # What is imported from a package may be a module of it.
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def roots(path):
    return {module.split(".")[0] for module in imports(path)}


def reached(module):
    """The modules of this repository that importing one imports, directly or through others."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in seen and file.exists():
            seen.add(name)
            waiting += imports(file)
    return seen


def files(*patterns):
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    assert found
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


@pytest.mark.parametrize("path", files("pipelines/**/*.py", "evaluation/**/*.py"))
def test_the_science_knows_nothing_of_the_web(path):
    assert not roots(path) & WEB


@pytest.mark.parametrize("path", files("pipelines/**/*.py", "service/**/*.py"))
def test_nothing_that_is_measured_knows_the_evaluation(path):
    """The command line mounts it, when it is called."""
    assert "evaluation" not in roots(path) or path.name == "cli.py"


def test_the_simulation_of_workers_needs_no_network():
    """It takes the service's rules, and costs as numbers; only what measures them runs models."""
    reach = reached("benchmarks.simulation.cluster")
    assert {"service.engine.turns", "service.store.moves"} <= reach
    assert not {module for module in reach if module.split(".")[0] == "pipelines"}


def test_the_authors_loop_shares_nothing_with_the_core():
    """A baseline that called what it is a baseline for would tell nothing."""
    known = {module for module in reached("evaluation.reference") if module.startswith("pipelines.")}
    assert not known & {f"pipelines.{name}" for name in ("superposition", "mixing", "sampler", "schedule")}


@pytest.mark.parametrize("path", files("pipelines/*.py", "service/**/*.py"))
def test_only_families_and_the_recipe_know_diffusers(path):
    assert not roots(path) & HUB


@pytest.mark.parametrize("path", files("pipelines/families/*.py"))
def test_families_know_nothing_of_sampling(path):
    assert not set(imports(path)) & SAMPLING


FAMILIES = {f"pipelines.families.{path.stem}" for path in ROOT.glob("pipelines/families/[!_]*.py")}
ARITHMETIC = {
    f"pipelines.{name}" for name in ("mixing", "superposition", "probability_flow", "particles", "lift", "choice")
}
SAMPLING = ARITHMETIC | {
    f"pipelines.{name}" for name in ("composition", "plan", "schedule", "draws", "canvas", "networks", "sampler")
}
LOADING = {"pipelines.catalog", "pipelines.entry", "pipelines.residency", "pipelines.warmup"}


def test_what_is_reached_is_followed_through_others():
    assert {"pipelines.model", "pipelines.card", "pipelines.noise"} <= reached("pipelines.residency")
    assert {"pipelines.sampler", "pipelines.composition"} <= reached("pipelines.warmup")
    assert FAMILIES & reached("tests.pipelines.mixtures") == {"pipelines.families.analytic"}


@pytest.mark.parametrize(
    ("module", "unknown"),
    [
        ("pipelines.card", {"pipelines.model", *FAMILIES, *LOADING, *SAMPLING}),
        ("pipelines.params", {"pipelines.model", *FAMILIES, *LOADING, *SAMPLING}),
        ("pipelines.entry", {"pipelines.model", "pipelines.catalog", "pipelines.residency", *FAMILIES, *SAMPLING}),
        ("pipelines.model", {*FAMILIES, *LOADING, *SAMPLING}),
        ("pipelines.residency", {"pipelines.catalog", "pipelines.entry", "pipelines.warmup", *FAMILIES, *SAMPLING}),
        ("pipelines.warmup", {"pipelines.catalog", "pipelines.entry", "pipelines.residency", *FAMILIES}),
        ("pipelines.composition", {"pipelines.model", *FAMILIES, *LOADING, *(SAMPLING - {"pipelines.composition"})}),
        ("pipelines.grammar", {"pipelines.model", *FAMILIES, *LOADING, *(SAMPLING - {"pipelines.composition"})}),
        ("pipelines.plan", {"pipelines.model", "pipelines.networks", "pipelines.sampler", *FAMILIES, *LOADING}),
        *((module, {"pipelines.model", "pipelines.plan", *FAMILIES, *LOADING}) for module in sorted(ARITHMETIC)),
        ("pipelines.sampler", {*FAMILIES, *LOADING}),
    ],
)
def test_who_must_not_know_whom_even_through_others(module, unknown):
    assert not reached(module) & unknown


def test_a_card_needs_no_torch_of_its_own():
    assert not roots(ROOT / "pipelines/card.py") & {"torch", *HUB}


@pytest.mark.parametrize("path", files("pipelines/families/*.py"))
def test_families_know_nothing_of_the_catalogue(path):
    assert not set(imports(path)) & LOADING


DIALECTS = {f"service.api.{path.parent.name}" for path in ROOT.glob("service/api/*/__init__.py")}
NATIVE = {f"service.api.{name}" for name in ("superpose", "density", "jobs", "models", "answers", "problem")}


@pytest.mark.parametrize("path", files("service/api/**/*.py"))
def test_no_dialect_knows_another(path):
    """The native one is the files right in service/api; what every dialect uses there knows none of its wire."""
    own = f"service.api.{path.parent.name}"
    others = DIALECTS - {own} | (NATIVE if own in DIALECTS else set())
    assert not {module for module in imports(path) if module.startswith(tuple(others))}


@pytest.mark.parametrize("path", files("service/api/**/*.py", "service/schemas/*.py", "service/engine/scheduler.py"))
def test_the_wire_and_the_scheduler_never_touch_torch(path):
    assert "torch" not in roots(path)


@pytest.mark.parametrize("path", files("service/store/**/*.py"))
def test_the_store_knows_neither_the_wire_nor_the_science(path):
    """Of the service it knows turns, priorities, what a key is and how to wait, so any process may remember with it."""
    known = {module for module in imports(path) if module.split(".")[0] in {"service", "pipelines"}}
    order = {"service.engine.turns", "service.engine.scheduler", "service.callers", "service.tasks"}
    assert not {module for module in known if not module.startswith(("service.store", *order))}
    assert not roots(path) & {"torch", "fastapi", "starlette", "pydantic"}


@pytest.mark.parametrize("path", files("service/engine/*.py"))
def test_the_engine_knows_no_store(path):
    assert not {module for module in imports(path) if module.startswith("service.store")}


@pytest.mark.parametrize("path", files("service/durable/*.py"))
def test_jobs_as_data_know_neither_the_wire_nor_the_store(path):
    assert not roots(path) & {"fastapi", "starlette", "asyncio"}
    assert not {
        module for module in imports(path) if module.startswith(("service.api", "service.schemas", "service.store"))
    }


@pytest.mark.parametrize("path", files("service/keeper/*.py"))
def test_the_keeper_knows_no_dialect_and_no_database(path):
    others = ("service.api", "service.schemas", "service.store.sql", "service.store.memory")
    assert not {module for module in imports(path) if module.startswith(others)}
    assert not roots(path) & {"fastapi", "starlette", "sqlalchemy"}


@pytest.mark.parametrize("path", files("pipelines/**/*.py", "service/**/*.py"))
def test_one_file_knows_ray(path):
    assert "ray" not in roots(path) or path == ROOT / "service/cluster.py"


def test_nobody_needs_the_cluster():
    assert not [path for path in ROOT.glob("service/**/*.py") if "service.cluster" in imports(path)]


def test_how_many_workers_is_told_by_one_module_alone():
    """An autoscaler is given this file and may have nothing else of the package."""
    assert not roots(ROOT / "service/workers/scaling.py") & {"service", "pipelines", "ray", "pydantic", "torch"}


@pytest.mark.parametrize("path", files("service/web/*.py"))
def test_the_page_knows_the_service_by_its_api_alone(path):
    assert not roots(path) & {"service", "pipelines"}


@pytest.mark.parametrize("path", files("service/**/*.py"))
def test_nothing_is_built_at_module_level(path):
    """No settings, engine, model or application singletons: module-level calls build only routers and constants."""
    routers = {"APIRouter", "Typer"}
    constants = {
        "ContextVar", "Dialect", "ParamSpec", "Path", "TypeVar", "compile", "frozenset", "fromkeys", "getLogger",
    }  # fmt: skip
    if path.is_relative_to(ROOT / "service/store"):
        # What a table is, and what is asked of it, in words of the library.
        constants |= {"MetaData", "Table", "with_variant", "and_", "is_", "or_", "text", "values"}
    for node in ast.parse(path.read_text()).body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Call):
            name = value.func.attr if isinstance(value.func, ast.Attribute) else value.func.id
            assert name in routers | constants, f"{path}:{node.lineno} calls {name}"
