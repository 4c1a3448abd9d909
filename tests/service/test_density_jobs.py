"""Densities as jobs like any other: asynchronous, by events, by key, by id; over small real models."""

import pytest
from fastapi.testclient import TestClient

from pipelines.catalog import Catalog
from service.app import create_app
from service.settings import Settings
from tests.service.test_api import refused
from tests.service.test_images import encoded, noise
from tests.service.test_jobs import ASYNC, finished, parsed

DENSITY = "/v1/density"
BODY = {
    "components": ["a red circle", {"prompt": "a blue star", "model": "two"}],
    "image": encoded(noise(16, 16)),
    "steps": 4,
    "seed": 1,
    "draws": 2,
}
# A thousand steps: it never ends by itself within a test.
LONG = BODY | {"steps": 1000, "draws": 8}
# A stream of events that never ends fails its own test.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def client(models):
    settings = Settings(running_rows=24, max_pixels=64 * 64)
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as client:
        yield client


def told_of(answer):
    """What a density says, without what differs from job to job."""
    return {key: value for key, value in answer.items() if key not in {"id", "created", "timings"}}


@pytest.fixture(scope="module")
def direct(client):
    """The answer to the plain synchronous request."""
    answer = client.post(DENSITY, json=BODY)
    assert answer.status_code == 200, answer.text
    return answer


def test_the_answer_names_its_job_and_what_it_is(client, direct):
    told = direct.json()
    assert (told["object"], told["status"], told["models"]) == ("density", "completed", ["one", "two"])
    assert direct.headers["x-superdiff-id"] == told["id"]
    assert direct.headers["location"] == f"/v1/jobs/{told['id']}"
    assert told["timings"]["steps"] == 4


def test_a_density_stands_among_the_jobs_with_its_result(client, direct):
    info = client.get(direct.headers["location"]).json()
    assert (info["object"], info["kind"], info["status"]) == ("job", "density", "completed")
    assert info["result"] == direct.json()
    listed = client.get("/v1/jobs").json()["data"]
    assert [(job["kind"], job["result"]) for job in listed if job["id"] == info["id"]] == [("density", None)]
    drawn = client.post("/v1/superpose", json={"expression": "a", "steps": 1}).json()
    assert drawn["object"] == client.get(f"/v1/jobs/{drawn['id']}").json()["result"]["object"] == "superposition"


def test_an_asynchronous_density_answers_at_once_and_ends_the_same(client, direct):
    accepted = client.post(DENSITY, json=BODY, headers=ASYNC)
    assert accepted.status_code == 202
    assert accepted.headers["preference-applied"] == "respond-async"
    path = accepted.headers["location"]
    assert path == f"/v1/jobs/{accepted.headers['x-superdiff-id']}" == f"/v1/jobs/{accepted.json()['id']}"
    assert told_of(finished(client, path)["result"]) == told_of(direct.json())


def test_the_events_end_with_the_density(client, direct):
    answer = client.post(DENSITY, json=BODY, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    (first, queued, _), *_, (last, told, _) = parsed(answer.text)
    assert (first, last) == ("queued", "completed")
    assert queued["id"] == told["id"] == answer.headers["x-superdiff-id"]
    assert told_of(told) == told_of(direct.json())
    later = parsed(client.get(f"/v1/jobs/{told['id']}/events").text)
    assert later[-1][1] == told


@pytest.mark.parametrize("accept", ["image/png", "image/*", "text/html"])
def test_what_a_density_cannot_be_sent_as_is_406(client, accept):
    problem = refused(client.post(DENSITY, json=BODY, headers={"Accept": accept}), 406)
    assert problem["detail"].endswith("there are application/json, text/event-stream")


@pytest.mark.parametrize("what", ["images/0", "lift-maps/0/0", "trajectory"])
def test_a_density_job_has_nothing_drawn(client, direct, what):
    problem = refused(client.get(f"{direct.headers['location']}/{what}"), 404)
    assert "this is a density job: it has no" in problem["detail"]
    assert direct.headers["location"] in problem["detail"]


def test_a_running_density_is_cancelled_by_its_id(client):
    path = client.post(DENSITY, json=LONG, headers=ASYNC).headers["location"]
    assert refused(client.get(f"{path}/images/0"), 404)
    assert client.delete(path).json()["status"] == "cancelled"
    assert parsed(client.get(f"{path}/events").text)[-1][0] == "cancelled"


def test_the_same_density_with_the_same_key_is_the_same_job(client):
    key = {"Idempotency-Key": "one"}
    first, again = (client.post(DENSITY, json=BODY, headers=key).json() for _ in range(2))
    assert first == again
    refused(client.post(DENSITY, json=BODY | {"draws": 3}, headers=key), 409)
    # The same key with a composition is another request too.
    refused(client.post("/v1/superpose", json={"expression": "a"}, headers=key), 409)


def test_the_schema_tells_both_results_of_a_job_apart(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    result = schemas["JobInfo"]["properties"]["result"]
    mapping = next(part["discriminator"] for part in result["anyOf"] if "discriminator" in part)
    assert mapping["propertyName"] == "object"
    assert set(mapping["mapping"]) == {"superposition", "density"}


def test_kappa_is_what_weight_was_and_weight_is_marked_as_deprecated(client):
    body = {"expression": "a OR b", "steps": 3, "include_trajectory": True}
    told = client.post("/v1/superpose", json=body).json()
    (image,) = told["images"]
    assert image["kappa"] == image["weight"]
    assert sum(image["kappa"].values()) == pytest.approx(1)
    assert all(point["kappa"] == point["weight"] for point in told["trajectory"])
    bare = client.post("/v1/superpose", json=body, headers={"Accept": "image/png"})
    assert bare.headers["x-superdiff-kappa"] == bare.headers["x-superdiff-weight"]
    assert bare.headers["location"] == f"/v1/jobs/{bare.headers['x-superdiff-id']}"
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("Picture", "TrajectoryPoint"):
        fields = schemas[name]["properties"]
        assert fields["weight"]["deprecated"] is True
        assert "kappa" in fields["weight"]["description"]
        assert "deprecated" not in fields["kappa"]
