"""The service on a Ray cluster of this machine: the API in one replica, two workers in others, an SQLite file."""

import importlib.util
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests import clusters
from tests.clusters import WAIT_S, until
from tests.pipelines.families import tiny

if importlib.util.find_spec("ray") is None:
    if os.environ.get("SUPERDIFF_REQUIRE_RAY") == "1":
        raise RuntimeError("SUPERDIFF_REQUIRE_RAY=1, but ray is not installed: pip install superdiff-serve[ray]")
    pytest.skip("ray is not installed: pip install superdiff-serve[ray]", allow_module_level=True)

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[1]
AND = "/v1/superpose/and"
BODY = {"components": ["a red circle", "a blue star"], "steps": 3, "seed": 7}
LEASE_S = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ray")
    tiny.stable_diffusion(made / "one", seed=0, hearing=8)
    (made / "catalog.toml").write_text('[models.one]\nsource = "one"\n')
    return made


@pytest.fixture(scope="module")
def alone(folder):
    """The service with an engine of its own."""
    torch.set_num_threads(1)
    settings = Settings(database="memory:", device="cpu", catalog=folder / "catalog.toml")
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def running(folder):
    """The service on Ray, with two workers."""
    given = {
        "SUPERDIFF_DATABASE": f"sqlite:///{folder / 'jobs.sqlite'}",
        "SUPERDIFF_ARTIFACTS": folder / "files",
        "SUPERDIFF_CATALOG": folder / "catalog.toml",
        "SUPERDIFF_DEVICE": "cpu",
        "SUPERDIFF_ALLOW_ANYONE": "1",
        "SUPERDIFF_LEASE_S": LEASE_S,
        "SUPERDIFF_CHECKPOINT_S": 0.05,
        "SUPERDIFF_GRACE_S": 0,
    }
    environment = os.environ | {name: str(value) for name, value in given.items()}
    began = time.monotonic()
    cluster = clusters.start(folder / "log", environment, "min_workers=2", "max_workers=3")
    print(f"ready after {time.monotonic() - began:.1f} s")
    yield cluster
    began = time.monotonic()
    cluster.stop()
    print(f"ended in {time.monotonic() - began:.1f} s")


@pytest.fixture(scope="module")
def cluster(running):
    """A client of it."""
    with httpx.Client(base_url=running.url, timeout=WAIT_S) as client:
        until(lambda: len(workers(client)) == 2)
        yield client


def workers(client):
    return client.get("/v1/workers").json()["workers"]


def submit(client, asked):
    answer = client.post(AND, json=asked, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def events(client, path):
    with client.stream("GET", f"{path}/events") as stream:
        kind = None
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kind = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                yield kind, json.loads(line.removeprefix("data:"))


def test_a_picture_is_the_one_of_the_service_alone(cluster, alone):
    answers = [client.post(AND, json=BODY, headers={"Accept": "image/png"}) for client in (cluster, alone)]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    assert answers[0].headers["x-superdiff-seed"] == "7"
    assert len(answers[0].headers.get_list("x-request-id")) == 1


def test_events_come_while_the_job_runs(cluster):
    path = submit(cluster, BODY | {"steps": 300, "preview_every": 50})
    heard = [(kind, data, time.monotonic()) for kind, data in events(cluster, path)]
    kinds = [kind for kind, _, _ in heard]
    assert kinds[-1] == "completed", heard[-1]
    assert {"progress", "preview"} <= set(kinds)
    # Not all at once, at the end.
    assert heard[-1][2] - heard[kinds.index("progress")][2] > 0.2


def test_a_job_is_cancelled(cluster):
    path = submit(cluster, BODY | {"steps": 1000})
    until(lambda: cluster.get(path).json()["step"] > 0)
    assert cluster.delete(path).status_code == 200
    until(lambda: cluster.get(path).json()["status"] == "cancelled")
    until(lambda: not any(each["running_jobs"] for each in workers(cluster)))


def test_a_client_that_leaves_ends_its_job(cluster):
    body = json.dumps(BODY | {"steps": 1000, "num_images": 4})
    head = f"POST {AND} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((cluster.base_url.host, cluster.base_url.port)) as connection:
        connection.sendall((head + body).encode())
        (job,) = until(lambda: cluster.get("/v1/jobs", params={"state": "running"}).json()["data"])
    until(lambda: cluster.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled")
    until(lambda: not any(each["running_jobs"] for each in workers(cluster)))


def test_a_job_survives_the_end_of_its_worker(cluster, alone):
    asked = BODY | {"steps": 1000}
    path = submit(cluster, asked)
    until(lambda: cluster.get(path).json()["step"] >= 20)
    (busy,) = until(lambda: [each for each in workers(cluster) if each["running_jobs"]])
    assert cluster.get(path).json()["status"] == "running"
    os.kill(int(busy["id"].split("-")[-2]), signal.SIGKILL)
    until(lambda: cluster.get(path).json()["status"] == "completed")
    job = cluster.get(path).json()
    assert job["attempts"] == 2
    assert job["result"]["timings"]["resumed_from"] >= 1
    expected = alone.post(AND, json=asked, headers={"Accept": "image/png"}).content
    assert cluster.get(f"{path}/images/0").content == expected
    # Ray replaces it.
    until(lambda: len({each["id"] for each in workers(cluster)} - {busy["id"]}) >= 2)
    until(lambda: len(workers(cluster)) == 2)


def test_there_are_more_workers_where_work_waits_and_fewer_when_it_is_done(cluster):
    paths = [submit(cluster, BODY | {"steps": 1000, "num_images": 16, "seed": seed}) for seed in range(8)]
    began = time.monotonic()
    until(lambda: len(workers(cluster)) == 3)
    print(f"a third worker after {time.monotonic() - began:.1f} s")
    for path in paths:
        cluster.delete(path)
    began = time.monotonic()
    until(lambda: len(workers(cluster)) == 2)
    print(f"two again after {time.monotonic() - began:.1f} s")
    assert cluster.post(AND, json=BODY).status_code == 200


def test_workers_that_are_replaced_give_their_jobs_back(cluster, running):
    before = {each["id"] for each in workers(cluster)}
    path = submit(cluster, BODY | {"steps": 1000, "num_images": 4})
    until(lambda: cluster.get(path).json()["step"] >= 20)
    began = time.monotonic()
    running.deploy("worker_cpus=0.9")
    print(f"deployed anew in {time.monotonic() - began:.1f} s")
    job = until(lambda: (found := cluster.get(path).json())["status"] == "completed" and found)
    # No lease ran out: the job was given back with its last checkpoint.
    assert job["attempts"] == 1
    assert job["result"]["timings"]["resumed_from"] >= 20
    until(lambda: not before & {each["id"] for each in workers(cluster)})


# Ray's own models warn of what Pydantic will not take one day.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_serve_run_may_set_is_documented():
    from service.cluster import Cluster

    table = re.findall(r"^\| `(\w+)` \| (\S+) \|", (ROOT / "docs/ray.md").read_text(), re.MULTILINE)
    fields = Cluster.model_fields.items()
    assert table == [(name, "none" if each.default is None else f"{each.default:g}") for name, each in fields]
