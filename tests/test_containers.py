"""The container files, without a container engine: parsed, held to what the service is, a Dockerfile's steps taken."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from scripts import dry_build
from service.settings import Settings

TMP = "/tmp"  # noqa: S108  the container's own
ROOT = Path(__file__).parents[1]
KNOWN = {f"SUPERDIFF_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(scope="module")
def steps():
    return [(each["instruction"], each["value"]) for each in dry_build.instructions(ROOT / "Dockerfile")]


def values(steps, name):
    return [value for instruction, value in steps if instruction == name]


def composed(*names):
    """Compose files, with their anchors resolved, and merged as Compose merges them."""
    files = [yaml.safe_load((ROOT / name).read_text()) for name in names]
    return files[0] if len(files) == 1 else merged(*files)


def merged(first, second):
    if isinstance(first, dict) and isinstance(second, dict):
        return {key: merged(first.get(key, second.get(key)), second.get(key, first.get(key))) for key in first | second}
    return second


def test_the_stages_build_first_and_run_without_privileges(steps):
    froms = [i for i, (name, _) in enumerate(steps) if name == "FROM"]
    assert len(froms) == 2
    last = steps[froms[1] :]
    assert values(last, "USER") == ["superdiff"]
    assert not [name for name, _ in last[last.index(("USER", "superdiff")) :] if name in {"RUN", "COPY"}]
    assert "pip" not in " ".join(values(last, "RUN"))
    for name in ("ENTRYPOINT", "CMD"):
        (value,) = values(last, name)
        assert isinstance(json.loads(value), list), "the exec form, or signals do not reach the service"
    assert values(last, "HEALTHCHECK")
    labels = dry_build.pairs(values(last, "LABEL")[0])
    assert {f"org.opencontainers.image.{each}" for each in ("title", "licenses", "version", "revision")} <= set(labels)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"VERSION={project['version']}" in values(last, "ARG")


def test_what_is_copied_is_there_and_not_ignored(steps):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for value in values(steps, "COPY"):
        if not value.startswith("--from"):
            *sources, _ = value.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source not in ignored


def test_variables_are_settings_and_paths_are_volumes(steps):
    (environment,) = values(steps, "ENV")
    set_there = dry_build.pairs(environment)
    own = {name for name in set_there if name.startswith("SUPERDIFF_")}
    assert own <= KNOWN
    volumes = json.loads(values(steps, "VOLUME")[0])
    for name in ("HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "SUPERDIFF_STATE", "MPLCONFIGDIR"):
        assert set_there[name].startswith((*volumes, TMP))
    Settings(**{name.removeprefix("SUPERDIFF_").lower(): set_there[name] for name in own})


def test_every_step_of_a_dockerfile_is_followed(tmp_path, monkeypatch):
    """The script that runs the whole, over a Dockerfile of the same instructions that installs nothing."""
    (tmp_path / "Dockerfile").write_text(
        "FROM python AS build\nARG WHAT=\nWORKDIR /src\nCOPY pyproject.toml LICENSE ./\n"
        "RUN mkdir -p /opt/superdiff \\\n    && cp LICENSE /opt/superdiff/${WHAT:+no}license\n"
        "FROM python\nRUN useradd superdiff && python -c 'print(1)' > /opt/superdiff/one\n"
        "COPY --from=build /opt/superdiff /opt/superdiff\nENV PATH=/opt/superdiff/bin:$PATH \\\n    A=/models/a\n"
        'HEALTHCHECK --interval=1s \\\n    CMD ["true"]\nENTRYPOINT ["superdiff"]\nCMD ["serve"]\n'
    )
    root = tmp_path / "root"
    root.mkdir()
    image = dry_build.Image(root, root)
    for each in dry_build.instructions(tmp_path / "Dockerfile"):
        dry_build.follow(image, each["instruction"], each["value"])
    assert (root / "opt/superdiff/license").read_text() == (ROOT / "LICENSE").read_text()
    assert (root / "opt/superdiff/one").read_text() == "1\n"
    assert image.environment["A"] == f"{root}/models/a"
    assert image.environment["PATH"].startswith(f"{root}/opt/superdiff/bin:")
    assert (image.entry, image.command, image.health) == (["superdiff"], ["serve"], ["true"])
    with pytest.raises(SystemExit, match="the stage has no /opt/other"):
        dry_build.copy(image, "--from=build /opt/other /opt/other")


def interpolated(text):
    """As Compose reads it where the environment has the secrets and nothing else."""
    text = re.sub(r"\$\{\w+:\?[^}]+\}", "secret", text)
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("names", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.postgres.yml")])
def test_the_compose_files_follow_the_specification(names):
    specification = pytest.importorskip("compose_spec")
    held = composed(*names)
    parsed = specification.PyCompose.from_yaml(interpolated(yaml.safe_dump(held, width=1000)))
    assert set(parsed.service_names()) == set(held["services"])


def test_the_services_are_confined_and_given_time(steps):
    for service in (composed("docker-compose.yml")["services"][name] for name in ("superdiff", "cpu")):
        assert (service["read_only"], service["init"], service["cap_drop"]) == (True, True, ["ALL"])
        grace = int(service["stop_grace_period"].removesuffix("s"))
        assert grace >= Settings.model_fields["grace_s"].default + 5
        mounted = {volume.split(":")[1] for volume in service["volumes"]}
        # On disk, /tmp too: in memory, large bodies would count against the container's limit.
        assert {TMP, *json.loads(values(steps, "VOLUME")[0])} <= mounted
        assert "tmpfs" not in service
    gpu = composed("docker-compose.yml")["services"]["superdiff"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_secrets_are_asked_for_and_never_written():
    text = (ROOT / "docker-compose.postgres.yml").read_text()
    asked = re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|KEY)\w*)(:\?[^}]+)?\}", text)
    assert asked
    assert all(how for _, how in asked)
    services = composed("docker-compose.yml", "docker-compose.postgres.yml")["services"]
    for name in ("superdiff", "cpu"):
        assert set(services[name]["environment"]) <= KNOWN
        assert services[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert services["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]


def test_the_parser_sees_both_stages():
    assert DockerfileParser(path=str(ROOT / "Dockerfile"), cache_content=True).is_multistage
