"""What the service publishes of itself is what it sends: the OpenAPI document, methods, /docs."""

import re

import pytest
from fastapi.testclient import TestClient

from pipelines.catalog import Catalog
from service.api.openai.schemas import ImageRequest
from service.api.problem import MEDIA_TYPE
from service.app import create_app
from service.schemas import habits
from service.schemas.requests import AndRequest, DensityRequest, SuperposeRequest
from service.schemas.trees import Component
from service.settings import Settings

DIALECTS = {"/v1/images": ("ErrorResponse", "application/json"), "/sdapi": ("SdapiError", "application/json")}
DIALECTS["/internal"] = DIALECTS["/sdapi"]


@pytest.fixture(scope="module")
def client(models):
    with TestClient(create_app(Settings(), catalog=Catalog.of(models))) as client:
        yield client


@pytest.fixture(scope="module")
def document(client):
    return client.get("/openapi.json").json()


def operations(document):
    return [(path, method, operation) for path, each in document["paths"].items() for method, operation in each.items()]


def test_every_error_is_published_in_its_dialect_s_form(document):
    for path, method, operation in operations(document):
        native = "Problem", MEDIA_TYPE
        name, media_type = next((told for prefix, told in DIALECTS.items() if path.startswith(prefix)), native)
        errors = {status: told for status, told in operation["responses"].items() if not status.startswith("2")}
        assert "default" in errors, (path, method)
        for told in errors.values():
            assert told["content"] == {media_type: {"schema": {"$ref": f"#/components/schemas/{name}"}}}, (path, method)


def test_every_schema_that_is_named_is_there_and_none_is_foreign(document):
    schemas = set(document["components"]["schemas"])
    named = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert named <= schemas
    assert not {"HTTPValidationError", "ValidationError"} & schemas


def test_the_document_is_made_once(client):
    assert client.app.openapi() is client.app.openapi()


def test_headers_that_are_lists_are_published_as_any_text_and_taken_so(client, document):
    """An empty list is one (RFC 9110, section 5.6.1); what is not known in it is ignored (RFC 7240, section 2)."""
    headers = [
        (path, parameter)
        for path, _, operation in operations(document)
        for parameter in operation.get("parameters", [])
        if parameter["name"] in {"prefer", "accept"}
    ]
    assert {parameter["name"] for _, parameter in headers} == {"prefer", "accept"}
    for path, parameter in headers:
        assert parameter["schema"] == {"type": "string", "title": parameter["name"].capitalize()}, path
    body = {"components": ["a"], "steps": 2}
    for sent in ([("Prefer", "")], [("Prefer", " , ,")], [("Prefer", "handling=lenient")], [("Accept", "")]):
        assert client.post("/v1/superpose/or", json=body, headers=sent).status_code == 200, sent
    lines = [("Prefer", "wait=10"), ("Prefer", "respond-async")]
    assert client.post("/v1/superpose/or", json=body, headers=lines).status_code == 202


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs/none", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("/v1/jobs", {"GET", "HEAD", "OPTIONS"}),
        ("/v1/superpose/and", {"POST", "OPTIONS"}),
        ("/v1/images/edits", {"POST", "OPTIONS"}),
        ("/sdapi/v1/options", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("/", {"GET", "HEAD", "OPTIONS"}),
        ("/web/style.css", {"GET", "HEAD", "OPTIONS"}),
        ("/docs", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_options_and_405_tell_every_method(client, path, methods):
    asked = client.options(path)
    assert asked.status_code == 204
    assert set(asked.headers["allow"].split(", ")) == methods
    wrong = client.patch(path)
    assert wrong.status_code == 405
    assert set(wrong.headers["allow"].split(", ")) == methods


def test_options_of_nothing_is_404(client):
    assert client.options("/v1/nothing").status_code == 404


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/web/style.css", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/one",
             "/v1/models/three", "/v1/jobs", "/v1/jobs/none", "/openapi.json", "/sdapi/v1/samplers"]
)  # fmt: skip
def test_head_is_get_without_its_body(client, path):
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # whose numbers change
        assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.timeout(30)
def test_head_of_a_stream_ends_at_once(client):
    body = {"components": ["a"], "steps": 2}
    job = client.post("/v1/superpose/or", json=body, headers={"Prefer": "respond-async"}).json()["id"]
    head = client.head(f"/v1/jobs/{job}/events")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    client.delete(f"/v1/jobs/{job}")


def test_the_documentation_loads_its_own_files_alone(client):
    page = client.get("/docs")
    assert page.status_code == 200
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) >= 4
    for file in files:
        assert not re.match(r"\w+:|//", file)
        answer = client.get(f"/{file}")
        assert answer.status_code == 200, file
        assert answer.headers["content-security-policy"]
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src" not in policy  # scripts are files of this service, as all else
    assert "http" not in policy
    assert client.get("/docs/LICENSE").text.lstrip().startswith("Apache License")


HABITS = [
    ("/v1/superpose/or", {"components": ["a"], "n": 2}, "there is no field `n`; did you mean `num_images`?"),
    ("/v1/superpose/or", {"prompt": "a"}, "there is no field `prompt`; did you mean `components`?"),
    ("/v1/superpose/and", {"components": ["a"], "size": "64x64"}, "did you mean `width` and `height`?"),
    ("/v1/superpose/and", {"components": ["a"], "cfg_scale": 7}, "did you mean `guidance_scale`?"),
    ("/v1/superpose/and", {"components": ["a"], "num_inference_steps": 7}, "did you mean `steps`?"),
    ("/v1/superpose/and", {"components": ["a"], "init_image": ""}, "did you mean `image`?"),
    ("/v1/superpose/and", {"components": ["a"], "shapness": 1}, "did you mean `sharpness`?"),
    ("/v1/superpose/or", {"components": [{"prompt": "a", "loras": {}}]}, "did you mean `lora`?"),
    ("/v1/superpose", {"prompts": ["a"]}, "did you mean `expression`?"),
    ("/v1/superpose", {"expression": {"and": ["a"], "weights": [1]}}, "did you mean `weight` of each term?"),
    ("/v1/superpose", {"expression": {"and": ["a"], "sharpnes": 1}}, "did you mean `sharpness`?"),
    ("/v1/density", {"components": ["a"], "image": "", "n": 4}, "did you mean `draws`?"),
    ("/v1/images/generations", {"prompt": "a", "num_images": 2}, "did you mean `n`?"),
    ("/v1/images/generations", {"prompt": "a", "seed": 2}, "did you mean `superdiff.seed`?"),
    ("/v1/images/generations", {"prompt": "a", "superdiff": {"batch_size": 2}}, "mean `n`, beside `superdiff`?"),
    ("/v1/superpose/or", {"components": ["a"], "zzz": 1}, "there is no field `zzz`"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "told"), HABITS, ids=[told for _, _, told in HABITS])
def test_an_unknown_field_is_told_with_the_one_that_may_be_meant(client, path, body, told):
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert told in str(answer.json())


def test_what_is_hinted_at_is_there():
    """Every field that a table names in backticks is a field of the request, or of its components."""
    tables = [
        (habits.COMPONENTS, {*AndRequest.model_fields, *SuperposeRequest.model_fields, *Component.model_fields}),
        (habits.EXPRESSION, {*SuperposeRequest.model_fields, *Component.model_fields}),
        (habits.DENSITY, {*DensityRequest.model_fields, *Component.model_fields}),
        (habits.COMPONENT, set(Component.model_fields)),
        (habits.IMAGES, {*ImageRequest.model_fields, *SuperposeRequest.model_fields}),
        (habits.EXTRA, {*ImageRequest.model_fields, *SuperposeRequest.model_fields, *Component.model_fields}),
    ]
    for table, fields in tables:
        for word, place in table.items():
            for name in re.findall(r"`(?:superdiff\.)?(\w+)`", place):
                assert name in fields | {"superdiff"}, (word, place)
