"""A real server process for tests."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class Server:
    """A running ``superdiff serve``."""

    process: subprocess.Popen
    url: str

    def stop(self):
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(60)


SHAPES = Path(__file__).with_name("shapes.toml")


def start(log_path, catalog=SHAPES, **environment):
    """``superdiff serve`` on a free port, ready to answer."""
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--port", "0"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {"SUPERDIFF_DEVICE": "cpu", "SUPERDIFF_CATALOG": str(catalog), "PYTHONUNBUFFERED": "1"}
            | environment,
        )
    deadline = time.monotonic() + 120
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
