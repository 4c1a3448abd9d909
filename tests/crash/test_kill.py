"""Servers are killed; what they accepted is done, once, to the same pictures."""

import asyncio
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import httpx
import pytest

from service.store.opening import open_store
from tests.waits import until

AND = "/v1/superpose/and"
BODY = {"components": ["a red circle", "a blue star"], "steps": 3}
JOBS, KILLS = 50, 10
WAIT_S = 120
LEASE_S = 1.5


def body(seed, **more):
    return BODY | {"seed": seed} | more


def expected(servers, bodies):
    """The pictures of requests, from a server that nobody kills."""
    server = servers.start(database="memory:")
    with httpx.Client(base_url=server.url, timeout=WAIT_S) as client:
        pictures = [client.post(AND, json=each, headers={"Accept": "image/png"}).content for each in bodies]
    server.kill()
    return pictures


def submit(server, key, asked):
    """The job's path; None where the server was killed before it answered."""
    headers = {"Prefer": "respond-async", "Idempotency-Key": key}
    with suppress(httpx.TransportError):
        answer = httpx.post(f"{server.url}{AND}", json=asked, headers=headers, timeout=WAIT_S)
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]
    return None


def completed(server):
    return httpx.get(f"{server.url}/v1/jobs", params={"state": "completed", "limit": 1000}).json()["data"]


def has_completed(server, count):
    return len(completed(server)) >= count


def stored(url, path):
    """A job as the store has it."""

    async def read():
        store = await open_store(url)
        try:
            return await store.get(path.rpartition("/")[2])
        finally:
            await store.close()

    return asyncio.run(read())


def assert_all_succeeded_once(server, paths, pictures, most_attempts=3):
    with httpx.Client(base_url=server.url, timeout=WAIT_S) as client:

        def jobs():
            return client.get("/v1/jobs", params={"limit": 1000}).json()["data"]

        until(lambda: {job["status"] for job in jobs()} <= {"completed", "failed", "cancelled"})
        listed = jobs()
        assert [job for job in listed if job["status"] != "completed"] == []
        assert sorted(f"/v1/jobs/{job['id']}" for job in listed) == sorted(paths)
        assert max(job["attempts"] for job in listed) <= most_attempts
        assert [client.get(f"{path}/images/0").content for path in paths] == pictures


def test_fifty_jobs_survive_ten_kills(servers, tmp_path):
    rng = random.Random(5)
    bodies = [body(seed) for seed in range(JOBS)]
    pictures = expected(servers, bodies)
    settings = {
        "database": f"sqlite:///{tmp_path / 'jobs.sqlite'}",
        "artifacts": str(tmp_path / "files"),
        "lease_s": LEASE_S,
        "checkpoint_s": 0.05,
    }
    server = servers.start(**settings)
    # The first one is killed while requests come in: those without an answer are sent again, with the same key.
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(submit, server, f"key {i}", each) for i, each in enumerate(bodies)]
        until(lambda: sum(each.done() for each in sent) >= rng.randrange(10, 40))
        server.kill()
        accepted = [each.result() for each in sent]
    assert None in accepted
    server = servers.start(**settings)
    paths = [submit(server, f"key {i}", each) for i, each in enumerate(bodies)]
    assert all(path == before for path, before in zip(paths, accepted, strict=True) if before is not None)
    for _ in range(1, KILLS):
        # Every server gets something done: else the first job in the queue could be what runs at three kills in a row.
        until(partial(has_completed, server, min(JOBS, len(completed(server)) + 3)))
        time.sleep(rng.uniform(0, 0.2))
        server.kill()
        server = servers.start(**settings)
    assert_all_succeeded_once(server, paths, pictures)


def test_a_long_job_goes_on_from_its_checkpoint(servers, tmp_path):
    asked = body(7, steps=150, include_trajectory=True)
    (picture,) = expected(servers, [asked])
    database = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    settings = {"database": database, "artifacts": str(tmp_path / "files"), "lease_s": LEASE_S, "checkpoint_s": 0.1}
    server = servers.start(**settings)
    path = submit(server, "long", asked)
    until(lambda: (found := stored(database, path).checkpoint) is not None and found.step >= 50)
    server.kill()
    reached = stored(database, path).checkpoint.step
    server = servers.start(**settings)
    assert_all_succeeded_once(server, [path], [picture])
    info = httpx.get(f"{server.url}{path}").json()
    assert info["attempts"] == 2
    assert info["result"]["timings"]["resumed_from"] == reached
    assert len(httpx.get(f"{server.url}{path}/trajectory").json()) == 150
    rows = next(
        line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line.startswith("superdiff_rows_total")
    )
    assert float(rows.split()[1]) == 3 * (150 - reached)


def test_of_two_servers_on_one_database_one_is_killed(servers, postgres_url, tmp_path):
    bodies = [body(seed) for seed in range(12)]
    pictures = expected(servers, bodies)
    settings = {"database": postgres_url, "artifacts": str(tmp_path / "files"), "lease_s": LEASE_S}
    one, two = (servers.start(**settings) for _ in range(2))
    paths = [submit(server, f"key {i}", each) for i, each in enumerate(bodies) for server in ((one, two)[i % 2],)]
    until(lambda: len(completed(two)) >= 3)
    one.kill()
    assert_all_succeeded_once(two, paths, pictures)


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_a_server_that_slept_past_its_lease_writes_nothing_more(servers, tmp_path, request, kind):
    asked = [body(3, steps=300), body(4, steps=300)]
    pictures = expected(servers, asked)
    database = (
        request.getfixturevalue("postgres_url") if kind == "postgres" else f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    )
    settings = {"database": database, "artifacts": str(tmp_path / "files"), "lease_s": LEASE_S}
    one, two = (servers.start(**settings) for _ in range(2))
    paths = [submit(one, f"key {i}", each) for i, each in enumerate(asked)]
    # Asked of the server: the store hears of steps with the heartbeat, and the job may be over by then.
    until(lambda: httpx.get(f"{one.url}{paths[0]}").json()["step"] >= 2)
    one.signal(signal.SIGSTOP)
    assert_all_succeeded_once(two, paths, pictures)
    before = [stored(database, path) for path in paths]
    assert [record.attempts for record in before] == [2, 2]
    one.signal(signal.SIGCONT)
    until(lambda: "another worker's by now" in servers.log.read_text())
    until(lambda: httpx.get(f"{one.url}{paths[0]}", timeout=WAIT_S).json()["status"] == "completed")
    assert_all_succeeded_once(one, paths, pictures)
    assert [stored(database, path) for path in paths] == before


def test_a_job_whose_processes_always_die_is_given_up(servers, tmp_path):
    settings = {"database": f"sqlite:///{tmp_path / 'jobs.sqlite'}", "artifacts": str(tmp_path / "files"), "lease_s": 1}
    server = servers.start(**settings)
    path = submit(server, "poison", body(1, steps=1000))

    def runs_as(attempt):
        found = stored(settings["database"], path)
        return (found.state, found.attempts) == ("running", attempt)

    for attempt in (1, 2, 3):
        until(partial(runs_as, attempt))
        server.kill()
        server = servers.start(**settings)
    until(lambda: stored(settings["database"], path).state == "failed")
    info = httpx.get(f"{server.url}{path}").json()
    assert (info["status"], info["attempts"]) == ("failed", 3)
    assert "stopped" in info["error"]
    # The key is free again.
    assert submit(server, "poison", body(1, steps=1)) != path


def test_a_server_that_is_told_to_stop_gives_its_jobs_back_where_they_are(servers, tmp_path):
    asked = [body(7, steps=100), body(8)]
    pictures = expected(servers, asked)
    database = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    # A lease of a day: nobody could take the jobs up unless they were given back.
    settings = {"database": database, "artifacts": str(tmp_path / "files"), "lease_s": 86_400, "checkpoint_s": 0}
    server = servers.start(**settings)
    paths = [submit(server, f"key {i}", each) for i, each in enumerate(asked)]
    until(lambda: httpx.get(f"{server.url}{paths[0]}").json()["step"] >= 5)
    server.signal(signal.SIGTERM)
    server.wait()
    before = stored(database, paths[0])
    assert before.state == "queued"
    assert before.checkpoint.step >= 5
    server = servers.start(**settings)
    assert_all_succeeded_once(server, paths, pictures, most_attempts=1)
    assert httpx.get(f"{server.url}{paths[0]}").json()["result"]["timings"]["resumed_from"] == before.checkpoint.step
