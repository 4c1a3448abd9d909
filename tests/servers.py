"""A real server process for tests: ``superdiff serve``, or what ``tests.behind`` puts in its place."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

SHAPES = Path(__file__).with_name("shapes.toml")
READY_S = 120


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen
    url: str

    def stop(self):
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(60)


def start(log_path, catalog=SHAPES, **environment):
    """A server on a free port, ready to answer.

    Args:
        log_path: Where what it says goes.
        catalog: Its models.
        environment: Its settings, SUPERDIFF_*.
    """
    fixed = {"SUPERDIFF_DEVICE": "cpu", "SUPERDIFF_CATALOG": str(catalog), "PYTHONUNBUFFERED": "1"}
    return launch(log_path, os.environ | fixed | environment)


def serve(log_path, environment):
    """``superdiff serve``."""
    with log_path.open("w") as log:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    deadline = time.monotonic() + READY_S
    url = None
    while time.monotonic() < deadline:
        assert process.poll() is None, log_path.read_text()
        if url is None:
            found = re.search(r"http://127\.0\.0\.1:\d+", log_path.read_text())
            url = found and found.group()
        elif httpx.get(f"{url}/readyz").status_code == 200:
            return Server(process, url)
        time.sleep(0.1)
    process.kill()
    process.wait()
    raise AssertionError(f"not ready: {log_path.read_text()}")


launch = serve
