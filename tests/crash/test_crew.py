"""The workers that a service starts itself: they come back when they die, and go when it does."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from service.settings import Settings
from service.workers.crew import environment, processors
from tests.crash.test_kill import AND, BODY
from tests.pipelines.families import tiny
from tests.waits import until

READY_S = 120


@contextmanager
def service(folder, *options):
    """`superdiff serve` with these options, its own process and its address."""
    tiny.stable_diffusion(folder / "one", seed=0, hearing=8)
    (folder / "catalog.toml").write_text('[models.one]\nsource = "one"\n')
    log = folder / "log"
    given = {"OMP_NUM_THREADS": "1", "SUPERDIFF_STATE": str(folder / "state"), "SUPERDIFF_GRACE_S": "0"}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--catalog", folder / "catalog.toml"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SUPERDIFF_")}
    with log.open("w") as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=file, env=inherited | given)
    try:
        address = until(lambda: re.search(r"running on (http://[\d.:]+)", log.read_text()), READY_S)[1]
        until(lambda: answers(address, "/readyz"), READY_S)
        yield process, address
    finally:
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def answers(address, path):
    with suppress(httpx.TransportError):
        return httpx.get(f"{address}{path}").status_code == 200
    return False


def worker_ids(address):
    return {worker["id"] for worker in httpx.get(f"{address}/v1/workers").json()["workers"]}


def gone(child):
    return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_dies_is_started_again_and_none_outlives_the_service(tmp_path):
    with service(tmp_path, "--workers", "1") as (process, address):
        (before,) = worker_ids(address)
        body = BODY | {"steps": 200}
        path = httpx.post(f"{address}{AND}", json=body, headers={"Prefer": "respond-async"}).headers["location"]
        until(lambda: httpx.get(f"{address}{path}").json()["step"] > 0)
        (child,) = psutil.Process(process.pid).children()
        child.kill()
        until(lambda: worker_ids(address) - {before}, READY_S)
        # Its lease runs out first.
        until(lambda: httpx.get(f"{address}{path}").json()["attempts"] == 2, READY_S)
        httpx.delete(f"{address}{path}")
        assert 'superdiff_running_jobs{worker="' in httpx.get(f"{address}/metrics").text
        assert "superdiff_workers 1.0" in httpx.get(f"{address}/metrics").text
        (child,) = psutil.Process(process.pid).children()
        # Nobody tells it that the service is gone.
        process.kill()
        until(lambda: gone(child), READY_S)


def test_workers_end_with_the_service(tmp_path):
    with service(tmp_path, "--workers", "1") as (process, _):
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        process.wait(READY_S)
        assert gone(child)


@pytest.mark.parametrize(("count", "expected"), [(1, processors()), (10**6, 1)])
def test_workers_share_the_processors_and_have_the_service_s_settings(monkeypatch, tmp_path, count, expected):
    for name in ("OMP_NUM_THREADS", "SUPERDIFF_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUPERDIFF_PORT", "1")
    settings = Settings(state=tmp_path, cors_origins=["https://a.example", "https://b.example"], workers=count, port=9)
    told = environment(settings, 0, count)
    assert told["OMP_NUM_THREADS"] == str(expected)
    assert told["SUPERDIFF_CORS_ORIGINS"] == "https://a.example,https://b.example"
    assert told["SUPERDIFF_PORT"] == "9"
    assert "SUPERDIFF_WORKERS" not in told
    for name in list(os.environ):
        if name.startswith("SUPERDIFF_"):
            monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings.model_copy(update={"workers": None})
