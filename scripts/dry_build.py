"""Runs the Dockerfile without a container engine: every COPY and RUN in a temporary folder that stands for the root.

    python -m scripts.dry_build           all: installs torch and the libraries anew, starts the service, asks it
    python -m scripts.dry_build --list    only what would be done

Paths of the image are moved below the folder, `useradd` and `chown` are left out, and all stages share one root, so a
COPY --from only looks whether its source is there. Then the image's own command is started: its health check and one
request must succeed, and nothing may be written but where the image says so, or it would not run on a read-only root.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dockerfile_parse import DockerfileParser

ROOT: Final = Path(__file__).parents[1]
PORT: Final = 8933
_MOVED: Final = re.compile(
    r"(?<![\w./:])/(opt|src|models|etc/superdiff|var/lib/superdiff|home/superdiff|tmp)(?=[/\s\"':]|$)"
)
_LEFT_OUT: Final = ("useradd", "chown")
_WRITABLE: Final = ("models", "var/lib/superdiff", "tmp")
_READY_S: Final = 120


@dataclass(slots=True)
class Image:
    """What a Dockerfile comes to, as far as it was followed."""

    root: Path
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def moved(self, text: str) -> str:
        """The text with the image's paths below the root."""
        return _MOVED.sub(lambda found: f"{self.root}/{found[1]}", text)


def instructions(path: Path) -> list[dict[str, Any]]:
    """The Dockerfile's instructions in order, each a name and a value."""
    parser = DockerfileParser(path=str(path), cache_content=True)
    return [each for each in parser.structure if each["instruction"] != "COMMENT"]


def pairs(value: str) -> dict[str, str]:
    """The names and values of an ENV, LABEL or ARG."""
    found = re.findall(r'([\w.]+)=("[^"]*"|\S*)', value.replace("\\\n", " "))
    return {name: text.strip('"') for name, text in found}


def follow(image: Image, name: str, value: str) -> None:
    """Do what one instruction says."""
    match name:
        case "ARG":
            image.arguments |= pairs(value)
        case "ENV":
            moved = {key: image.moved(text) for key, text in pairs(value).items()}
            image.environment |= {key: os.path.expandvars(text) for key, text in moved.items()}
        case "WORKDIR":
            image.folder = Path(image.moved(value))
            image.folder.mkdir(parents=True, exist_ok=True)
        case "COPY":
            copy(image, value)
        case "RUN":
            run(image, value)
        case "ENTRYPOINT":
            image.entry = json.loads(value)
        case "CMD":
            image.command = json.loads(value)
        case "HEALTHCHECK":
            image.health = json.loads(value.partition("CMD")[2])


def copy(image: Image, value: str) -> None:
    """COPY: from the repository; from another stage it only looks."""
    *sources, target = value.split()
    if sources[0].startswith("--from="):
        for source in sources[1:]:
            if not Path(image.moved(source)).exists():
                raise SystemExit(f"COPY {value}: the stage has no {source}")
        return
    for source in sources:
        place = image.folder / image.moved(target)
        if target.endswith("/"):
            place /= source
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)


def run(image: Image, value: str) -> None:
    """RUN: by a shell, in the folder that stands for WORKDIR."""
    command = image.moved(value.replace("\\\n", " "))
    shims = image.root / "shims"
    shims.mkdir(exist_ok=True)
    for name in _LEFT_OUT:
        (shims / name).write_text("#!/bin/sh\nexit 0\n")
        (shims / name).chmod(0o755)
    # `python` is the image's own interpreter.
    (shims / "python").unlink(missing_ok=True)
    (shims / "python").symlink_to(sys.executable)
    path = f"{shims}:{os.environ['PATH']}"
    environment = {**os.environ, **image.arguments, **image.environment, "PATH": path}
    environment.pop("PYTHONPATH", None)
    subprocess.run(["sh", "-ec", command], cwd=image.folder, env=environment, check=True)


def files(image: Image) -> dict[str, int]:
    """Every file of the image but those below its writable folders, and when it was written."""
    writable = {str(image.root / name) for name in _WRITABLE}
    found: dict[str, int] = {}
    for folder, inner, names in os.walk(image.root):
        inner[:] = [name for name in inner if f"{folder}/{name}" not in writable]
        found |= {f"{folder}/{name}": Path(folder, name).lstat().st_mtime_ns for name in names}
    return found


def try_out(image: Image) -> None:
    """Start the image's command, ask it, and look what it wrote."""
    for name in _WRITABLE:
        (image.root / name).mkdir(parents=True, exist_ok=True)
    before = files(image)
    environment = {"PATH": os.environ["PATH"], "HOME": str(image.root / "home/superdiff"), **image.environment}
    environment |= {"SUPERDIFF_HOST": "127.0.0.1", "SUPERDIFF_PORT": str(PORT), "SUPERDIFF_DEVICE": "cpu"}
    environment["TMPDIR"] = str(image.root / "tmp")
    # Popen looks for programs on this process's own path.
    program = shutil.which(image.entry[0], path=environment["PATH"]) or image.entry[0]
    server = subprocess.Popen([program, *image.entry[1:], *image.command], cwd=image.folder, env=environment)
    try:
        until_ready(server)
        health = shutil.which(image.health[0], path=environment["PATH"]) or image.health[0]
        subprocess.run([health, *image.health[1:]], env=environment, check=True, timeout=10)
        body = json.dumps({"components": ["a red circle", "a blue star"], "steps": 3}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/v1/superpose/and",
            body,
            {"Content-Type": "application/json", "Accept": "image/png"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            picture = answer.read()
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    if not picture.startswith(b"\x89PNG") or status not in {0, -signal.SIGTERM}:
        raise SystemExit(f"the service ended with {status}")
    if written := sorted(name for name, _ in set(files(image).items()) - set(before.items())):
        raise SystemExit(f"written outside of the writable folders: {', '.join(written[:10])}")
    print(f"health check and one picture of {len(picture)} bytes; ended with {status}")


def until_ready(server: "subprocess.Popen[bytes]") -> None:
    """Wait for /readyz."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the service did not become ready")


def main() -> None:
    """Follow the Dockerfile."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.dry_build", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--list", action="store_true", help="only print the instructions, paths moved")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="superdiff-image-") as folder:
        root = Path(folder)
        (root / "tmp").mkdir()
        (root / "home/superdiff").mkdir(parents=True)
        image = Image(root, root)
        for each in instructions(ROOT / "Dockerfile"):
            print(f"{each['instruction']} {image.moved(each['value'])}", flush=True)
            if not given.list:
                follow(image, each["instruction"], each["value"])
        if not given.list:
            try_out(image)


if __name__ == "__main__":
    main()
