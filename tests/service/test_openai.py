"""The OpenAI dialect's parts on their own: how faults are told, how forms are read."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai._qs import Querystring
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from pipelines.errors import InvalidInputError, ModelLoadError
from service.api import openai, problem
from service.api.openai.errors import written
from service.api.openai.form import typed_fields
from service.faults import by_path, fault_of, install
from service.strict_json import Bounds
from tests.service.test_faults import SAMPLES

BOUNDS = Bounds(32, 10_000)


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    install(app, by_path(problem.DIALECT, {openai.PREFIX: openai.DIALECT}))

    @app.get("/v1/images/{index}")
    async def fail(index: int) -> None:
        raise SAMPLES[index][0]

    @app.get("/v1/images/status/{status}")
    async def refuse(status: int) -> None:
        raise HTTPException(status, "so it is")

    @app.get("/v1/images-of-others")
    async def elsewhere() -> None:
        raise SAMPLES[0][0]

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_every_exception_has_openai_s_form(client, index):
    error, status = SAMPLES[index]
    answer = client.get(f"/v1/images/{index}")
    assert answer.status_code == status
    told = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert list(told) == ["message", "type", "param", "code"]
    field = getattr(error, "field", ())
    assert told["message"] == (f"{field[0]}: {error}" if field else fault_of(error).detail)
    assert told["param"] == (field[0] if field else None)
    assert ("retry-after" in answer.headers) == (status in {429, 503} and type(error) is not ModelLoadError)


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", "bad_request"),
        (401, "authentication_error", "invalid_api_key"),
        (403, "invalid_request_error", "insufficient_permissions"),
        (404, "invalid_request_error", "unknown_url"),
        (409, "invalid_request_error", "conflict"),
        (429, "rate_limit_error", "rate_limit_exceeded"),
        (500, "server_error", "internal_server_error"),
        (503, "server_error", "service_unavailable"),
    ],
)
def test_a_status_has_its_type_and_code(client, status, kind, code):
    told = client.get(f"/v1/images/status/{status}").json()["error"]
    assert told == {"message": "so it is", "type": kind, "param": None, "code": code}


def test_other_paths_are_no_matter_of_the_dialect(client):
    assert client.get("/v1/images-of-others").headers["content-type"] == problem.MEDIA_TYPE


def test_places_are_written_as_openai_writes_them():
    assert written(("superdiff", "expression", "and", 0, "weight")) == "superdiff.expression.and[0].weight"


def form_of(body):
    """A form with the fields as the client's own code writes them."""
    return FormData(Querystring().stringify_items(body, array_format="brackets"))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "12", "n": 2, "stream": True, "output_compression": 50, "size": "64x64", "user": "7"},
        {"prompt": "a", "superdiff": {"seed": 7, "guidance_scale": 2.5, "include_trajectory": False}},
        {"prompt": "a", "superdiff": {"negative_prompt": "1", "kernel": "exact", "expression": "true"}},
        {"prompt": "a", "superdiff": {"expression": {"or": ["1", "b"], "temperature": 2}}},
        {"prompt": "a", "superdiff": {"expression": {"prompt": "2", "lora": {"ink": 0.5, "7": 1}}}},
        {"prompt": "a", "superdiff": {"expression": {"not": {"not": {"and": ["a"]}}, "scale": 1e-3}}},
    ],
)
def test_what_the_client_writes_into_a_form_is_read_back(body):
    assert typed_fields(form_of(body), BOUNDS) == body


def test_superdiff_may_be_json_and_single_fields_besides():
    form = FormData([("superdiff", '{"seed": 3, "expression": {"or": [{"prompt": "a"}]}}'), ("superdiff[steps]", "2")])
    assert typed_fields(form, BOUNDS) == {"superdiff": {"seed": 3, "expression": {"or": [{"prompt": "a"}]}, "steps": 2}}


@pytest.mark.parametrize(
    ("items", "field", "told"),
    [
        ([("n", "1"), ("n", "2")], ("n",), "more than once"),
        ([("superdiff[seed]", "1"), ("superdiff[seed]", "2")], ("superdiff", "seed"), "more than once"),
        ([("superdiff[a]", "1"), ("superdiff[a][b]", "2")], ("superdiff", "a", "b"), "two ways"),
        ([("superdiff[a][b]", "2"), ("superdiff[a]", "1")], ("superdiff", "a"), "two ways"),
        ([("superdiff[a]", "2"), ("superdiff", "{}")], ("superdiff",), "two ways"),
        ([("superdiff[or][][prompt]", "a")], ("superdiff", "or"), "one JSON string"),
        ([("superdiff[a", "1")], ("superdiff[a",), "no name of a nested field"),
        ([("superdiff[a]b", "1")], ("superdiff[a]b",), "no name of a nested field"),
        ([("superdiff" + "[a]" * 1000, "1")], ("superdiff" + "[a]" * 1000,), "no name of a nested field"),
        ([("", "1"), ("", "2")], ("",), "more than once"),
        ([("superdiff", "[" * 100_000)], ("superdiff",), "nested more than 32 deep"),
        ([("superdiff", '{"a": 1, "a": 2}')], ("superdiff",), "twice"),
        ([("superdiff", "{")], ("superdiff",), "not JSON"),
    ],
)
def test_fields_that_cannot_be_read_are_named(items, field, told):
    with pytest.raises(InvalidInputError, match=told) as refused:
        typed_fields(FormData(items), BOUNDS)
    assert refused.value.field == field
