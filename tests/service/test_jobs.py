"""Jobs over HTTP: asynchronous requests, events, cancel; in process, over small real models."""

import base64
import gc
import io
import json
import threading
import time

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.catalog import Catalog
from service.app import create_app
from service.settings import Settings

AND, OR = "/v1/superpose/and", "/v1/superpose/or"
BODY = {"components": ["a red circle", "a blue star"], "steps": 4, "seed": 5}
ASYNC = {"Prefer": "respond-async"}
LONG = BODY | {"steps": 1000, "num_images": 8}  # 24 rows: as many as may run at once
# A stream of events that never ends fails its own test.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def client(models):
    settings = Settings(running_rows=24, waiting_jobs=4)
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as client:
        yield client


def parsed(text):
    """The events of a stream: (event, data, id)."""
    found = []
    for block in text.replace("\r\n", "\n").strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"]), int(fields["id"])))
    return found


def finished(client, path):
    for _ in range(600):
        info = client.get(path).json()
        if info["status"] in {"completed", "failed", "cancelled"}:
            return info
        time.sleep(0.05)
    raise AssertionError(info)


def test_an_asynchronous_request_answers_at_once_and_lives_on(client):
    accepted = client.post(AND, json=BODY | {"num_images": 2, "include_trajectory": True}, headers=ASYNC)
    assert accepted.status_code == 202
    assert accepted.headers["preference-applied"] == "respond-async"
    path = accepted.headers["location"]
    assert path == f"/v1/jobs/{accepted.json()['id']}"
    info = finished(client, path)
    assert (info["status"], info["step"], info["steps"]) == ("completed", 4, 4)
    assert [image["url"] for image in info["result"]["images"]] == [f"{path}/images/{i}" for i in range(2)]
    picture = client.get(info["result"]["images"][1]["url"])
    assert picture.headers["content-type"] == "image/png"
    same = client.post(AND, json=BODY | {"seed": 6}, headers={"Accept": "image/png"})
    assert Image.open(io.BytesIO(picture.content)).size == Image.open(io.BytesIO(same.content)).size
    webp = client.get(f"{path}/images/0", params={"format": "webp"})
    assert Image.open(io.BytesIO(webp.content)).format == "WEBP"
    assert client.get(f"{path}/images/2").status_code == 404
    assert info["result"]["trajectory"] is None
    trajectory = client.get(f"{path}/trajectory").json()
    assert [point["step"] for point in trajectory] == [1, 2, 3, 4]
    table = client.get(f"{path}/trajectory", headers={"Accept": "text/csv"}).text.splitlines()
    columns = "step,sigma,image,candidate,particle,component,weight,log_density,effective_sample_size,kappa"
    assert table[0] == columns
    assert len(table) == 1 + 4 * 2 * 2


def test_pictures_by_url_on_request(client):
    answer = client.post(OR, json=BODY | {"response_format": "url"}).json()
    assert answer["images"][0]["b64_json"] is None
    assert client.get(answer["images"][0]["url"]).status_code == 200


def test_events_tell_the_way_and_end_with_the_result(client):
    body = BODY | {"preview_every": 2, "steps": 5, "num_images": 2}
    # Something else runs first, so that the listener is there before the first step.
    path = client.post(AND, json=LONG, headers=ASYNC).headers["location"]
    cancel = threading.Timer(0.5, client.delete, [path])
    cancel.start()
    with client.stream("POST", AND, json=body, headers={"Accept": "text/event-stream"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = parsed("".join(stream.iter_text()))
    cancel.join()
    kinds = [kind for kind, _, _ in told]
    assert kinds[-1] == "completed"
    assert "progress" in kinds
    ids = [number for _, _, number in told]
    assert ids == sorted(ids)
    steps = [data["step"] for kind, data, _ in told if kind == "progress"]
    assert steps == sorted(steps)
    progress = next(data for kind, data, _ in told if kind == "progress")
    assert progress["steps"] == 5
    assert [len(row) for row in progress["weight"]] == [2, 2]
    for kind, data, _ in told:
        if kind == "preview":
            assert data["step"] in {2, 4}
            assert Image.open(io.BytesIO(base64.b64decode(data["images"][1]))).format == "JPEG"
    assert base64.b64decode(told[-1][1]["images"][0]["b64_json"]).startswith(b"\x89PNG")


def test_events_of_a_job_resume_after_the_last_seen(client):
    path = client.post(OR, json=BODY, headers=ASYNC).headers["location"]
    finished(client, path)
    everything = parsed(client.get(f"{path}/events").text)
    assert everything[-1][0] == "completed"
    last = everything[-1][2]
    assert parsed(client.get(f"{path}/events", headers={"Last-Event-ID": str(last - 1)}).text) == everything[-1:]
    assert parsed(client.get(f"{path}/events", headers={"Last-Event-ID": str(last)}).text) == []
    assert parsed(client.get(f"{path}/events", headers={"Last-Event-ID": str(last + 9)}).text) == everything
    assert client.get(f"{path}/events", headers={"Last-Event-ID": "9" * 5000}).status_code == 422


def test_delete_cancels_a_running_job_then_deletes_it_and_is_harmless_after(client):
    path = client.post(AND, json=LONG, headers=ASYNC).headers["location"]
    assert client.delete(path).json()["status"] == "cancelled"
    assert client.get(path).json()["status"] == "cancelled"
    assert parsed(client.get(f"{path}/events").text)[-1][0] == "cancelled"
    assert client.get(f"{path}/images/0").status_code == 409
    assert client.delete(path).json()["status"] == "cancelled"
    for _ in range(2):
        assert client.delete(path).status_code == 404


def test_the_same_request_with_the_same_key_is_the_same_job(client):
    key = {"Idempotency-Key": "once"}
    first = client.post(OR, json=BODY, headers=key | ASYNC).headers["location"]
    again = client.post(OR, json=BODY, headers=key).json()
    assert f"/v1/jobs/{again['id']}" == first
    # Whoever asks for it bare gets the same picture, not another.
    bare = client.post(OR, json=BODY, headers=key | {"Accept": "image/png"})
    assert bare.headers["x-superdiff-id"] == again["id"]
    assert client.post(OR, json=BODY).json()["id"] != again["id"]
    other = client.post(OR, json=BODY, headers=key | {"X-Client-Id": "someone else"}).json()
    assert other["id"] != again["id"]


@pytest.mark.parametrize(("path", "body"), [(OR, BODY | {"steps": 5}), (AND, BODY)])
def test_a_key_does_not_stand_for_two_requests(client, path, body):
    key = {"Idempotency-Key": f"twice {path}"}
    assert client.post(OR, json=BODY, headers=key).status_code == 200
    answer = client.post(path, json=body, headers=key)
    assert answer.status_code == 409
    assert "came with another request" in answer.json()["detail"]


def test_a_key_is_free_again_when_nothing_came_of_it(client):
    key = {"Idempotency-Key": "in vain"}
    refusal = client.post(OR, json=BODY | {"num_images": 64, "width": 4096, "height": 4096}, headers=key)
    assert refusal.status_code == 422
    path = client.post(AND, json=LONG, headers=key | ASYNC).headers["location"]
    assert client.post(AND, json=LONG, headers=key | ASYNC).headers["location"] == path
    client.delete(path)
    assert client.post(OR, json=BODY, headers=key).status_code == 200


def test_preferences_are_a_list_of_words(client):
    several = [("Prefer", "handling=lenient"), ("Prefer", "wait=3, Respond-Async; x")]
    assert client.post(OR, json=BODY, headers=several).status_code == 202
    assert client.post(OR, json=BODY, headers={"Prefer": "no-respond-async-please"}).status_code == 200


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/csv", "text/csv"),
        ("application/json, text/csv;q=0.1", "application/json"),
        ("application/json, text/csv;q=0", "application/json"),
        ("application/json;q=0.1, text/csv", "text/csv"),
    ],
)
def test_a_trajectory_comes_as_it_is_liked_best(client, accept, media_type):
    made = client.post(OR, json=BODY | {"include_trajectory": True}).json()
    answer = client.get(f"/v1/jobs/{made['id']}/trajectory", headers={"Accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == media_type


def test_cancelling_leaves_nothing_in_the_log(client, caplog):
    path = client.post(AND, json=LONG, headers=ASYNC).headers["location"]
    client.delete(path)
    gc.collect()
    assert [entry for entry in caplog.records if entry.levelname == "ERROR"] == []


@pytest.mark.parametrize("headers", [ASYNC, {}], ids=["kept", "in memory"])
def test_delete_deletes_a_completed_job_and_what_it_made(client, headers):
    path = client.post(AND, json=BODY, headers=headers).headers["location"]
    finished(client, path)
    assert client.delete(path).json()["status"] == "completed"
    for gone in (path, f"{path}/images/0", f"{path}/events"):
        assert client.get(gone).status_code == 404
    assert path.rpartition("/")[2] not in {job["id"] for job in client.get("/v1/jobs").json()["data"]}


def test_a_deadline_is_504(client):
    answer = client.post(AND, json=LONG | {"timeout_s": 0.2})
    assert answer.status_code == 504
    assert "not done within 0.2 s" in answer.json()["detail"]
    assert client.post(OR, json=BODY).status_code == 200


def test_a_full_queue_is_429_with_a_position_and_a_time(client):
    paths = []
    try:
        refused = None
        for _ in range(12):
            answer = client.post(AND, json=LONG, headers=ASYNC)
            if answer.status_code == 429:
                refused = answer
                break
            paths.append(answer.headers["location"])
        assert refused is not None
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["queue_position"] == 4
        standing = [client.get(path).json() for path in paths]
        places = [info["queue_position"] for info in standing if info["status"] == "queued"]
        assert sorted(places) == list(range(len(places)))
        assert len(places) == 4
    finally:
        for path in paths:
            client.delete(path)


def test_lists_show_the_caller_s_own_jobs(client):
    mine = client.post(OR, json=BODY, headers=ASYNC | {"X-Client-Id": "me"}).json()["id"]
    assert [job["id"] for job in client.get("/v1/jobs", headers={"X-Client-Id": "me"}).json()["data"]] == [mine]
    assert client.get("/v1/jobs", headers={"X-Client-Id": "you"}).json()["data"] == []


@pytest.mark.parametrize("path", ["/v1/jobs/none", "/v1/jobs/none/events", "/v1/jobs/none/images/0"])
def test_an_unknown_job_is_404(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "no job 'none'" in answer.json()["detail"]


def test_a_job_without_a_trajectory_says_how_to_get_one(client):
    path = client.post(OR, json=BODY, headers=ASYNC).headers["location"]
    finished(client, path)
    answer = client.get(f"{path}/trajectory")
    assert answer.status_code == 409
    assert "include_trajectory" in answer.json()["detail"]


def test_metrics_are_prometheus_text(client):
    client.post(OR, json=BODY)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for name in (
        "waiting_jobs",
        "running_rows",
        "batch_rows_bucket",
        "step_seconds_sum",
        "jobs_total",
        "prompts_total",
    ):
        assert f"superdiff_{name}" in answer.text
