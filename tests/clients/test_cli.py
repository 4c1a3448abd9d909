"""The command line in a real terminal, against a real server process over the models that ship."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pexpect
import pytest

from service.metadata import read
from tests.waits import until

ROOT = Path(__file__).parents[2]
EXPRESSION = '"a red circle" AND "a blue star"'
SHORT = ["--steps", "4", "--seed", "7"]
# Far more than a test waits for.
LONG = ["--steps", "1000", "-n", "8"]


def superdiff(*arguments, cwd, check=True, **environment):
    """A command whose output goes to pipes."""
    ended = subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SUPERDIFF_DEVICE": "cpu"} | environment,
    )
    assert not check or ended.returncode == 0, ended.stderr
    return ended


def terminal(*arguments, cwd, **environment):
    """A command in a terminal of its own."""
    return pexpect.spawn(
        sys.executable,
        ["-m", "service.cli", *map(str, arguments)],
        encoding="utf-8",
        timeout=120,
        cwd=str(cwd),
        dimensions=(40, 160),
        env=os.environ | {"PYTHONPATH": str(ROOT), "SUPERDIFF_DEVICE": "cpu", "TERM": "xterm-256color"} | environment,
    )


def ended(child):
    """The exit code of a command, once it has said everything."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def jobs_of(server):
    return httpx.get(f"{server.url}/v1/jobs", timeout=30).json()["data"]


@pytest.fixture(scope="module")
def original(server, tmp_path_factory):
    """A picture that the service drew for the command line, and what the command said of it."""
    folder = tmp_path_factory.mktemp("original")
    told = superdiff("compose", EXPRESSION, *SHORT, "-o", "one.png", "--json", "--url", server.url, cwd=folder)
    return folder / "one.png", json.loads(told.stdout)


def test_progress_appears_with_step_and_noise_level(server, tmp_path):
    child = terminal("compose", EXPRESSION, "--steps", "40", "-n", "4", "-o", "out/", "--url", server.url, cwd=tmp_path)
    child.expect(r"sampling.*?\d+/40.*?σ \d")
    child.expect(r"out/composed-0\.png  seed \d+")
    child.expect(r"out/contact-sheet\.png")
    assert ended(child) == 0
    assert len(list((tmp_path / "out").glob("composed-*.png"))) == 4


def test_a_terminal_that_shows_pictures_gets_them(original, server, tmp_path):
    child = terminal(
        "remake", original[0], "-o", "again.png", "--url", server.url, cwd=tmp_path, TERM="xterm-kitty", TMUX=""
    )
    child.expect(r"\x1b_Ga=T,f=100,")
    assert ended(child) == 0


@pytest.mark.parametrize("where", ["service", "here"])
def test_control_c_in_the_middle_cancels_the_job(server, tmp_path, where):
    url = ["--url", server.url] if where == "service" else []
    child = terminal("compose", EXPRESSION, *LONG, "-o", "out/", *url, cwd=tmp_path)
    child.expect(r"sampling.*?\d+/1000")
    child.sendintr()
    child.expect(r"interrupted; job (\w+) is cancelled")
    job = child.match[1]
    assert ended(child) == 130
    assert list((tmp_path / "out").iterdir()) == []
    if where == "service":
        assert [each["status"] for each in jobs_of(server) if each["id"] == job] == ["cancelled"]


def test_sigint_without_a_terminal_does_the_same(server, tmp_path):
    before = {job["id"] for job in jobs_of(server)}
    command = [sys.executable, "-m", "service.cli", "compose", EXPRESSION, *LONG, "--url", server.url]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, text=True) as process:
        until(lambda: [job["status"] for job in jobs_of(server) if job["id"] not in before] == ["running"])
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.fullmatch(r"superdiff: interrupted; job \w+ is cancelled\n", told)
    assert [job["status"] for job in jobs_of(server) if job["id"] not in before] == ["cancelled"]


@pytest.mark.parametrize(
    "command",
    [
        ["compose", "a"],
        ["jobs", "list"],
        ["models", "list"],
    ],
)
def test_a_service_that_is_down_is_one_line_and_exit_3(tmp_path, command):
    told = superdiff(*command, "--url", "http://127.0.0.1:9", cwd=tmp_path, check=False)
    assert (told.returncode, told.stdout) == (3, "")
    assert re.fullmatch(r"superdiff: http://127\.0\.0\.1:9: no service answers there: .+\n", told.stderr)


def test_a_mistake_is_shown_the_same_by_a_service(server, tmp_path):
    told = superdiff("compose", "a AND (b", "--url", server.url, cwd=tmp_path, check=False)
    assert told.returncode == 2
    assert told.stderr.splitlines()[1:] == ["a AND (b", "        ^"]
    wrong = superdiff("compose", "a", "--steps", "0", "--url", server.url, cwd=tmp_path, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    unknown = superdiff("jobs", "show", "none", "--url", server.url, cwd=tmp_path, check=False)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (4, 1)


@pytest.mark.parametrize("where", ["service", "here"])
def test_remade_it_is_the_same_bit_for_bit(original, server, tmp_path, where):
    url = ["--url", server.url] if where == "service" else []
    superdiff("remake", original[0], "-o", "again.png", *url, cwd=tmp_path)
    assert (tmp_path / "again.png").read_bytes() == original[0].read_bytes()


def test_json_is_all_of_stdout(original, server, tmp_path):
    picture, told = original
    assert told["images"][0]["file"] == "one.png"
    assert read(picture.read_bytes())["request"]["seed"] == told["images"][0]["seed"] == 7
    at = ["--json", "--url", server.url]
    shown = json.loads(superdiff("jobs", "show", told["id"], *at, cwd=tmp_path).stdout)
    assert (shown["id"], shown["kind"]) == (told["id"], "superposition")
    assert told["id"] in {job["id"] for job in json.loads(superdiff("jobs", "list", *at, cwd=tmp_path).stdout)["data"]}
    assert json.loads(superdiff("jobs", "cancel", told["id"], *at, cwd=tmp_path).stdout)["status"] == "completed"
    fetched = json.loads(superdiff("jobs", "fetch", told["id"], "-o", "f.png", *at, cwd=tmp_path).stdout)
    assert (tmp_path / fetched["images"][0]["file"]).read_bytes() == picture.read_bytes()
    models = json.loads(superdiff("models", "list", *at, cwd=tmp_path).stdout)
    assert "shapes" in {model["id"] for model in models["data"]}


def test_a_density_is_told_and_stands_among_the_jobs(original, server, tmp_path):
    given = [original[0], '"a red circle" OR "a green square"', "--steps", "4", "--draws", "2"]
    told = json.loads(superdiff("density", *given, "--json", "--url", server.url, cwd=tmp_path).stdout)
    assert sum(each["posterior"] for each in told["explanations"].values()) == pytest.approx(1)
    shown = superdiff("jobs", "show", told["id"], "--url", server.url, cwd=tmp_path)
    assert "density completed" in shown.stdout
    assert "a red circle: log-density" in shown.stdout
    refused = superdiff("jobs", "fetch", told["id"], "--url", server.url, cwd=tmp_path, check=False)
    assert refused.returncode == 4
    assert "it has no pictures" in refused.stderr


@pytest.fixture
def tiny_disk():
    """A file system with room for one small file."""
    folder = tempfile.mkdtemp()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], check=False).returncode
    ):
        Path(folder).rmdir()
        pytest.skip("a file system of 16 kB cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)
    Path(folder).rmdir()


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(server, tiny_disk, tmp_path):
    """Pages of 4 kB: the probe finds room, some of the pictures and their contact sheet do not."""
    given = ["compose", EXPRESSION, *SHORT, "-n", "6", "-o", f"{tiny_disk}/", "--url", server.url]
    told = superdiff(*given, cwd=tmp_path, check=False)
    assert told.returncode == 2
    said = re.fullmatch(r"superdiff: \S+\.png: cannot be written: No space left on device; (.+)\n", told.stderr)
    whole = [path.name for path in Path(tiny_disk).iterdir()]
    assert whole
    assert all(re.fullmatch(r"composed-\d\.png", name) for name in whole)
    fetch = said[1].partition("superdiff ")[2].replace("ELSEWHERE", "out/").split()
    superdiff(*fetch, cwd=tmp_path)
    assert len(list((tmp_path / "out").glob("composed-*.png"))) == 6
