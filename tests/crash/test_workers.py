"""Workers, the API and the database are killed while a hundred jobs are computed: none is lost, none is done twice."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx

from tests.crash.test_kill import (
    AND,
    BODY,
    LEASE_S,
    WAIT_S,
    assert_all_succeeded_once,
    body,
    expected,
    has_completed,
    submit,
)
from tests.postgres import FAST
from tests.waits import until

JOBS = 100


def none_is_on_its_last_try(server):
    """A worker holds many jobs: without this one of them could be among those of each that is killed."""
    listed = httpx.get(f"{server.url}/v1/jobs", params={"limit": 1000}).json()["data"]
    return not [job for job in listed if job["status"] != "completed" and job["attempts"] > 1]


def test_a_hundred_jobs_survive_whatever_is_killed(servers, postgres_server, postgres_url, tmp_path):
    rng = random.Random(7)
    bodies = [body(seed) for seed in range(JOBS)]
    pictures = expected(servers, bodies)
    settings = {
        "database": postgres_url,
        "artifacts": str(tmp_path / "files"),
        "lease_s": LEASE_S,
        "checkpoint_s": 0.05,
        "caller_jobs": JOBS,
    }
    workers = [servers.worker(**settings) for _ in range(2)]
    nodes = [servers.start(workers=0, **settings) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: submit(nodes[i % 2], f"key {i}", bodies[i]), range(JOBS)))
    assert None not in paths
    for kill in range(4):
        until(partial(has_completed, nodes[0], 12 * kill + 4))
        time.sleep(rng.uniform(0, 0.2))
        until(partial(none_is_on_its_last_try, nodes[0]))
        workers[kill % 2].kill()
        workers[kill % 2] = servers.worker(**settings)
    until(partial(none_is_on_its_last_try, nodes[0]))
    nodes[1].kill()
    postgres_server.stop()
    postgres_server.start(*FAST)
    nodes[1] = servers.start(workers=0, **settings)
    for node in nodes:
        # Every node answers for every job.
        assert_all_succeeded_once(node, paths, pictures, most_attempts=3)


def test_any_node_tells_and_cancels_what_another_took_in(servers, tmp_path):
    settings = {"database": f"sqlite:///{tmp_path / 'jobs.sqlite'}", "artifacts": str(tmp_path / "files")}
    worker = servers.worker(**settings)
    one, two = (servers.start(workers=0, **settings) for _ in range(2))
    path = submit(one, "long", BODY | {"steps": 1000, "preview_every": 2})
    kinds = set()
    with httpx.stream("GET", f"{two.url}{path}/events", timeout=WAIT_S) as stream:
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kinds.add(line.removeprefix("event:").strip())
            if {"progress", "preview"} <= kinds:
                break
    began = time.monotonic()
    assert httpx.delete(f"{two.url}{path}", timeout=WAIT_S).json()["status"] == "cancelled"
    until(lambda: httpx.get(f"{one.url}{path}").json()["status"] == "cancelled")
    until(lambda: not httpx.get(f"{one.url}/v1/workers").json()["workers"][0]["running_jobs"])
    # A beat of a second each for the worker to hear it and to tell of itself; ten times that on a busy machine.
    assert time.monotonic() - began < 20
    worker.signal(signal.SIGTERM)
    worker.wait()
    until(lambda: not httpx.get(f"{one.url}/v1/workers").json()["workers"])
    assert httpx.get(f"{one.url}/readyz").status_code == 503
    assert "no worker" in httpx.get(f"{one.url}/readyz").json()["detail"]


def test_a_worker_that_ends_in_order_gives_its_job_back_with_a_checkpoint(servers, tmp_path):
    asked = body(3, steps=120)
    (picture,) = expected(servers, [asked])
    settings = {"database": f"sqlite:///{tmp_path / 'jobs.sqlite'}", "artifacts": str(tmp_path / "files")}
    first = servers.worker(**settings)
    node = servers.start(workers=0, **settings)
    assert AND
    path = submit(node, "long", asked)
    until(lambda: httpx.get(f"{node.url}{path}").json()["step"] >= 5)
    first.signal(signal.SIGTERM)
    first.wait()
    servers.worker(**settings)
    assert_all_succeeded_once(node, [path], [picture], most_attempts=1)
    resumed = httpx.get(f"{node.url}{path}").json()["result"]["timings"]["resumed_from"]
    assert resumed >= 5
