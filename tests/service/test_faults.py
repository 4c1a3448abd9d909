"""Every exception has its problem, and the wire never shows an inside."""

import inspect
import re
from http import HTTPStatus

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pipelines import errors as science
from service.api.problem import DIALECT, MEDIA_TYPE
from service.durable.blobs import UnreadableError
from service.engine.job import CancelledJobError, DeadlineError, EngineStoppedError
from service.engine.scheduler import QueueFullError
from service.faults import STATUS, by_path, install, pointer
from service.keeper.errors import EarlierFailureError, IdempotencyError, LostFileError, MovedError
from service.pictures import PictureTooLargeError
from service.quotas import QuotaError
from service.store.port import DiskFullError, StoreUnavailableError, UnknownJobError
from service.strict_json import NestedTooDeepError, NotJsonError, TooManyItemsError

SAMPLES = [
    (science.InvalidInputError("steps must be at least 1, got 0", field=("steps",)), 422),
    (PictureTooLargeError("image has 65×64 pixels", field=("image",)), 413),
    (science.IncompatibleModelsError({"a": "latent", "b": "pixel"}), 422),
    (science.UnknownModelError("x", ("shapes",)), 404),
    (science.NonFiniteError("the sample overflowed"), 422),
    (science.ModelLoadError("broken: truncated"), 503),
    (science.ModelUnavailableError("far: the hub cannot be reached"), 503),
    (science.CatalogError("bad"), 500),
    (QueueFullError("7 jobs are waiting already", 7), 429),
    (QuotaError("the limit is reached", 3.0), 429),
    (EngineStoppedError("the service is shutting down"), 503),
    (StoreUnavailableError("the store cannot be reached; try again"), 503),
    (CancelledJobError("the job was cancelled"), 409),
    (DeadlineError("not done within 3 s"), 504),
    (UnknownJobError("x"), 404),
    (IdempotencyError("the key came before"), 409),
    (NotJsonError("the body has the key 'a' twice"), 400),
    (TooManyItemsError("the body holds more than 9 keys and values"), 413),
    (NestedTooDeepError("the body is nested more than 9 deep"), 422),
    (MovedError("the job goes on elsewhere"), 503),
    (EarlierFailureError("not done within 3 s", 504), 504),
    (UnreadableError("another version wrote it"), 500),
    (DiskFullError("no space"), 507),
    (LostFileError("the file is gone"), 410),
]


@pytest.fixture
def client():
    app = FastAPI()
    install(app, by_path(DIALECT, {}))

    @app.get("/fail/{index}")
    async def fail(index: int) -> None:
        raise SAMPLES[index][0]

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("/secret/path")

    @app.get("/full")
    async def full() -> None:
        raise QueueFullError("full", 7, 12.3)

    return TestClient(app, raise_server_exceptions=False)


def test_the_map_is_total():
    tree = {kind for _, kind in inspect.getmembers(science, inspect.isclass) if issubclass(kind, Exception)}
    assert tree <= set(STATUS)
    assert {type(error) for error, _ in SAMPLES} | {science.PipelineError} == set(STATUS)


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_every_exception_becomes_its_problem(client, index):
    error, status = SAMPLES[index]
    answer = client.get(f"/fail/{index}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    body = answer.json()
    assert body["status"] == status
    assert body["title"] == HTTPStatus(status).phrase
    lasting = type(error) is science.ModelLoadError
    assert body["detail"] == str(error) + "; it stays so until the service's operator mends it" * lasting
    assert body["instance"] == f"/fail/{index}"
    assert ("retry-after" in answer.headers) == (status in {429, 503} and not lasting)


def test_a_bug_gives_an_id_and_no_inside(client):
    answer = client.get("/bug")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert re.search(r"request id [0-9a-f]{32}", answer.json()["detail"])


def test_a_full_queue_tells_the_position_and_when_to_come_again(client):
    answer = client.get("/full")
    assert answer.headers["retry-after"] == "13"
    assert answer.json()["queue_position"] == 7


def test_pointers_are_escaped():
    assert pointer(("components", 0, "a/b~c")) == "#/components/0/a~1b~0c"
