"""What the README shows is run, as it stands there, against a running service."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.servers import start

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
CURLS = [block for language, block in BLOCKS if language == "bash" and block.startswith(("curl", "base64"))]
PROGRAMS = [block for language, block in BLOCKS if language == "python"]
# Of 255, on average: another processor may round a step another way; another picture is 20 or more off.
DRAWN_ANEW = 2.0


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The service with the models that ship, as `make serve` starts it, and a folder to work in."""
    folder = tmp_path_factory.mktemp("readme")
    running = start(folder / "log", ROOT / "superdiff.toml")
    yield running, folder
    running.stop()


def run(block, emoji, *command):
    """Run a block of the README, its address replaced by the server's."""
    server, folder = emoji
    port = urlsplit(server.url).port
    text = block.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("port=8000", f"port={port}")
    done = subprocess.run([*command, text], check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def picture(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def test_the_models_that_ship_answer_as_they_are_started(emoji):
    """The first draws what people recognise, with a LoRA for each style."""
    server, _ = emoji
    first, *others = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert first["id"] == "emoji"
    assert first["default"]
    assert first["loras"] == ["fluent", "noto"]
    assert [other["id"] for other in others] == ["shapes", "shapes-round", "shapes-sharp"]
    body = {"expression": '"a cat"<lora:noto:1> AND "a pizza"', "steps": 2, "seed": 1}
    answered = httpx.post(f"{server.url}/v1/superpose", json=body, timeout=60)
    assert answered.status_code == 200
    assert answered.json()["models"] == ["emoji"]


def test_every_kind_of_client_is_shown():
    assert len(CURLS) == 3
    assert [re.search(r"httpx|openai|webuiapi", block).group() for block in PROGRAMS] == ["httpx", "openai", "webuiapi"]


def test_the_pictures_that_are_shown_are_there():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", README)
    assert len(shown) >= 3
    for path in (next(filter(None, found)) for found in shown):
        assert picture(ROOT / path).size


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_commands_do_what_they_say(emoji):
    """The last asks for the density of the picture that the first draws."""
    drawing, composing, explaining = CURLS
    run(drawing, emoji, "bash", "-ec")
    assert np.abs(picture(emoji[1] / "composed.png") - picture(ROOT / "docs/images/composed.png")).mean() < DRAWN_ANEW
    assert len(json.loads(run(composing, emoji, "bash", "-ec"))["images"]) == 1
    explained = json.loads(run(explaining, emoji, "bash", "-ec"))["explanations"]
    assert explained.keys() == {"a cat", "a pizza"}


@pytest.mark.parametrize("block", PROGRAMS, ids=["httpx", "openai", "webuiapi"])
def test_the_programs_draw(block, emoji):
    run(block, emoji, sys.executable, "-c")
    (saved,) = re.findall(r"by-\w+\.png", block)
    assert picture(emoji[1] / saved).shape == (64, 64, 3)
