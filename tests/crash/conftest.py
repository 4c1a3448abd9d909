import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil
import pytest

from tests.pipelines.families import tiny
from tests.postgres import *  # noqa: F403

READY_S = 60


@dataclass
class Server:
    """A server process that may be killed."""

    pid: int
    url: str
    spent: list[float]

    def signal(self, number):
        os.kill(self.pid, number)

    @property
    def cpu_s(self):
        """Seconds of a processor that it has had."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def kill(self):
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            self.spent.append(self.cpu_s)
            self.signal(signal.SIGKILL)
        self.wait()

    def wait(self):
        """Until it is gone, and its port closed."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.005)
        raise AssertionError(f"process {self.pid} lives on")


class Zygote:
    """Starts servers over the tiny models; see zygote.py."""

    def __init__(self, folder):
        self.log = folder / "servers.log"
        self._servers = []
        # Seconds of a processor that each server has had.
        self.spent = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote", folder, self.log],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )
        assert self._process.stdout.readline(), "the models cannot be loaded"

    def worker(self, **settings):
        """A worker with these settings, which may still be starting."""
        return self._fork(role="worker", **settings)

    def _fork(self, **settings):
        given = {"preload": False, "running_rows": 1, "grace_s": 0, "device": "cpu"} | settings
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        pid, port = json.loads(self._process.stdout.readline())
        server = Server(pid, f"http://127.0.0.1:{port}", self.spent)
        self._servers.append(server)
        return server

    def start(self, **settings):
        """A server with these settings, ready."""
        server = self._fork(**settings)
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            with suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/readyz").status_code == 200:
                    return server
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def kill_all(self):
        for server in self._servers:
            server.kill()
        self._servers.clear()

    def close(self):
        self.kill_all()
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="package")
def zygote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash")
    tiny.stable_diffusion(folder / "one", seed=0, hearing=8)
    (folder / "catalog.toml").write_text('[models.one]\nsource = "one"\n')
    started = Zygote(folder)
    yield started
    started.close()
    print(f"{len(started.spent)} servers, {sum(started.spent):.0f} s of a processor")


@pytest.fixture
def servers(zygote):
    """The zygote; the servers that a test started end with it."""
    yield zygote
    zygote.kill_all()
