"""Jobs that outlive the process: restarts, several processes on one store, keys, pages, deletion."""

import copy
import hashlib
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from pipelines.catalog import Catalog
from service.app import create_app
from service.settings import Settings
from tests.service.test_jobs import parsed
from tests.waits import until

AND, OR, DENSITY = "/v1/superpose/and", "/v1/superpose/or", "/v1/density"
BODY = {"components": ["a red circle", "a blue star"], "steps": 4, "seed": 5}
FULL = BODY | {"include_trajectory": True, "include_lift_maps": True, "num_images": 2, "output_format": "webp"}
LONG = BODY | {"steps": 1000}
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def serve(models, tmp_path):
    """Starts the service, as often as wanted at once, over one store and one folder."""

    @contextmanager
    def start(catalog=None, **settings):
        given = {"database": f"sqlite:///{tmp_path / 'jobs.sqlite'}", "artifacts": str(tmp_path / "files")}
        # One job at a time: its company changes the rounding of what a network says.
        given |= {"running_rows": 1, "grace_s": 0, "preload": False} | settings
        with TestClient(create_app(Settings(**given), catalog=catalog or Catalog.of(models))) as client:
            yield client

    return start


def ended(client, path, wait_s=60):
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        info = client.get(path).json()
        if info["status"] in {"completed", "failed", "cancelled"}:
            return info
        time.sleep(0.05)
    raise AssertionError(info)


def shown(client, path):
    """All that can be asked of a completed job."""
    info = client.get(path).json()
    pictures = [client.get(f"{path}/images/{i}").content for i in range(2)]
    csv, svg = (client.get(f"{path}/trajectory", params={"format": form}).content for form in ("csv", "svg"))
    lift_map = client.get(f"{path}/lift-maps/0/1")
    return info, pictures, csv, svg, lift_map.content, lift_map.headers["x-superdiff-scale"]


def test_a_completed_job_answers_the_same_after_a_restart(serve):
    with serve() as client:
        path = client.post(AND, json=FULL, headers=ASYNC).headers["location"]
        ended(client, path)
        before, told = shown(client, path), parsed(client.get(f"{path}/events").text)
    with serve() as client:
        assert shown(client, path) == before
        again = parsed(client.get(f"{path}/events").text)
        (kind, data, number) = again[-1]
        assert (kind, data) == told[-1][:2]
        assert parsed(client.get(f"{path}/events", headers={"Last-Event-ID": "3"}).text) == again
        assert parsed(client.get(f"{path}/events", headers={"Last-Event-ID": str(number)}).text) == []
        (listed,) = client.get("/v1/jobs").json()["data"]
        assert listed == {**before[0], "result": None}


def test_failed_and_cancelled_jobs_and_densities_are_remembered(serve):
    with serve() as client:
        picture = client.post(OR, json=BODY).json()["images"][0]["b64_json"]
        density = {"components": BODY["components"], "steps": 3, "draws": 2, "seed": 1, "image": picture}
        first = client.post(DENSITY, json=density, headers=ASYNC).headers["location"]
        late = client.post(AND, json=LONG | {"timeout_s": 0.2}, headers=ASYNC).headers["location"]
        stopped = client.post(AND, json=LONG, headers=ASYNC).headers["location"]
        client.delete(stopped)
        before = [ended(client, path) for path in (first, late, stopped)]
        assert [info["status"] for info in before] == ["completed", "failed", "cancelled"]
    with serve() as client:
        assert [client.get(path).json() for path in (first, late, stopped)] == before
        assert "not done within 0.2 s" in before[1]["error"]
        assert parsed(client.get(f"{late}/events").text)[-1][1]["status"] == 504
        assert [job["id"] for job in client.get("/v1/jobs", params={"kind": "density"}).json()["data"]] == [
            before[0]["id"]
        ]


def completed(client):
    """How many jobs those who compute have completed, all together."""
    counts = re.findall(
        r'^superdiff_jobs_total\{.*outcome="completed".*\} (\S+)$', client.get("/metrics").text, re.MULTILINE
    )
    return sum(map(float, counts))


def test_jobs_that_were_cut_off_go_on_after_a_restart_to_the_same_pictures(serve):
    # The first two are not done before the service has ended, even on a busy machine; so two workers begin no other.
    bodies = [*(BODY | {"steps": 400, "seed": seed} for seed in (7, 8)), *(BODY | {"seed": seed} for seed in range(3))]
    with serve(artifacts="memory://", database="memory:") as client:
        expected = [client.post(AND, json=body, headers={"Accept": "image/png"}).content for body in bodies]
    with serve() as client:
        paths = [client.post(AND, json=body, headers=ASYNC).headers["location"] for body in bodies]
        until(lambda: client.get(paths[0]).json()["step"] >= 3)
    with serve() as client:
        infos = [ended(client, path) for path in paths]
        assert [info["status"] for info in infos] == ["completed"] * 5
        assert [client.get(f"{path}/images/0").content for path in paths] == expected
        assert infos[0]["result"]["timings"]["resumed_from"] >= 3
        assert [info["attempts"] for info in infos] == [1] * 5
        until(lambda: completed(client) == 5)


def test_a_job_whose_model_has_changed_meanwhile_begins_anew_with_the_new_one(serve, models):
    asked = BODY | {"steps": 400}
    changed = copy.copy(models["one"])
    changed._card = replace(changed.card, multiple=8)
    with serve(Catalog.of({"one": changed}), artifacts="memory://", database="memory:") as client:
        expected = client.post(AND, json=asked, headers={"Accept": "image/png"}).content
    with serve() as client:
        path = client.post(AND, json=asked, headers=ASYNC).headers["location"]
        until(lambda: client.get(path).json()["step"] >= 3)
    with serve(Catalog.of({"one": changed})) as client:
        info = ended(client, path)
        assert (info["status"], info["result"]["timings"]["resumed_from"]) == ("completed", 0)
        assert client.get(f"{path}/images/0").content == expected


def test_a_job_s_time_goes_on_while_no_process_runs(serve):
    with serve() as client:
        path = client.post(AND, json=LONG | {"timeout_s": 2}, headers=ASYNC).headers["location"]
        began = time.monotonic()
    time.sleep(max(0.0, began + 2 - time.monotonic()))
    with serve() as client:
        info = ended(client, path, 10)
        assert (info["status"], info["error"]) == ("failed", "not done within 2 s")


def test_a_restart_does_not_forget_keys(serve):
    key = {"Idempotency-Key": "once"}
    with serve() as client:
        first = client.post(OR, json=BODY, headers=key).json()
        waiting = client.post(AND, json=LONG, headers={"Idempotency-Key": "long"} | ASYNC).headers["location"]
    with serve() as client:
        again = client.post(OR, json=BODY, headers=key).json()
        assert again == first
        assert client.post(OR, json=BODY | {"seed": 6}, headers=key).status_code == 409
        same = client.post(AND, json=LONG, headers={"Idempotency-Key": "long"} | ASYNC)
        assert same.headers["location"] == waiting
        client.delete(waiting)


@pytest.mark.parametrize("attempt", range(3))  # threads meet in other orders each time
def test_concurrent_duplicates_in_two_processes_are_one_job(serve, attempt):
    with serve() as one, serve() as two:
        # FastAPI prepares its routes at the first request, and not for two threads at once.
        for client in (one, two):
            client.get("/healthz")
        answers = []

        def ask(client):
            answers.append(client.post(OR, json=BODY | {"steps": 20}, headers={"Idempotency-Key": "k"}).json())

        threads = [threading.Thread(target=ask, args=[client]) for client in (one, two, one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer["id"] for answer in answers} == {answers[0]["id"]}
        assert {hashlib.sha256(a["images"][0]["b64_json"].encode()).hexdigest() for a in answers} == {
            hashlib.sha256(answers[0]["images"][0]["b64_json"].encode()).hexdigest()
        }
        assert len(one.get("/v1/jobs").json()["data"]) == 1


def test_a_job_of_another_process_can_be_followed_cancelled_and_deleted(serve):
    with serve(lease_s=3) as one, serve(lease_s=3, running_rows=1) as two:
        path = one.post(AND, json=LONG, headers=ASYNC).headers["location"]
        until(lambda: two.get(path).json()["status"] == "running")
        told = []
        listener = threading.Thread(target=lambda: told.extend(parsed(two.get(f"{path}/events").text)))
        listener.start()
        until(lambda: two.get(path).json()["step"] > 0)
        assert two.delete(path).json()["status"] == "cancelled"
        listener.join(20)
        assert [kind for kind, _, _ in told][-1] == "cancelled"
        assert told[0][1]["id"] == path.rpartition("/")[2]
        until(lambda: one.get(path).json()["status"] == "cancelled")
        assert two.delete(path).json()["status"] == "cancelled"
        assert two.get(path).status_code == 404


def test_what_one_process_has_no_room_for_another_takes_up(serve):
    """Of a process that ends."""
    with serve() as two:
        with serve() as one:
            paths = [one.post(AND, json=BODY | {"steps": 25}, headers=ASYNC).headers["location"] for _ in range(3)]
        assert [ended(two, path)["status"] for path in paths] == ["completed"] * 3


def test_pages_lead_through_all_jobs_once_whatever_comes_meanwhile(serve):
    with serve() as client:
        made = []
        for i in range(7):
            headers = ASYNC if i % 2 else {}
            made.append(client.post(OR, json=BODY | {"seed": i}, headers=headers).headers["location"])
        for path in made:
            ended(client, path)
        found, after = [], None
        while True:
            answer = client.get("/v1/jobs", params={"limit": 3} | ({"after": after} if after else {}))
            found += [f"/v1/jobs/{job['id']}" for job in answer.json()["data"]]
            assert ("link" in answer.headers) == (answer.json()["next"] is not None)
            after = answer.json()["next"]
            if after is None:
                break
            assert client.get(answer.links["next"]["url"]).json()["data"] != answer.json()["data"]
            client.post(OR, json=BODY)
        assert found == made[::-1]
        kept = client.get("/v1/jobs", params={"state": "completed", "kind": "superposition", "limit": 100}).json()
        assert set(made) <= {f"/v1/jobs/{job['id']}" for job in kept["data"]}
        assert client.get("/v1/jobs", params={"state": "failed"}).json()["data"] == []
        for wrong in ({"after": "nonsense"}, {"state": "lost"}, {"kind": "film"}):
            refused = client.get("/v1/jobs", params=wrong)
            assert refused.status_code == 422
            assert next(iter(wrong)) in refused.json()["detail"]


def test_deleting_a_job_deletes_its_files(serve, tmp_path):
    def files():
        return list((tmp_path / "files").glob("??/*"))

    with serve() as client:
        paths = [client.post(OR, json=BODY | {"seed": seed}, headers=ASYNC).headers["location"] for seed in (1, 2)]
        for path in paths:
            ended(client, path)
        assert len(files()) == 2
        client.delete(paths[0])
        assert len(files()) == 1
        assert client.get(f"{paths[1]}/images/0").status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"prompt": "a red circle"}),
        ("/sdapi/v1/txt2img", {"prompt": "a red circle", "steps": 2}),
    ],
)
def test_every_dialect_names_the_job_even_where_it_fails(serve, path, body):
    with serve(max_timeout_s=3600) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 200
        assert answer.headers["location"] == f"/v1/jobs/{answer.headers['x-superdiff-id']}"
    with serve(max_timeout_s=0.001) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 504
        assert answer.headers["location"] == f"/v1/jobs/{answer.headers['x-superdiff-id']}"
