"""What operators see of a request: its id, its lines in the log, its spans."""

import io
import json
import logging
import re
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient

from pipelines.catalog import Catalog
from service import tracing
from service.app import create_app
from service.commands.computing import bound_spinning
from service.logs import JsonLines, LogFormat, LogLevel, PrettyLines, about, accepted_id, set_up
from service.settings import Settings

OR = "/v1/superpose/or"
BODY = {"components": [{"prompt": "", "model": "pixels"}], "steps": 2, "guidance_scale": 1}
PROMPT = "a prompt of a customer"


def app_of(models, **settings):
    return create_app(Settings(preload=False, **settings), catalog=Catalog.of({"pixels": models["pixels"]}))


@pytest.fixture
def lines():
    """What the service says, as JSON; the loggers are as they were afterwards."""
    root, written = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.removeHandler(handler)
    root.setLevel(level)


def test_every_line_of_a_request_has_its_id_and_its_job(models, lines):
    with TestClient(app_of(models)) as client:
        answer = client.post(OR, json=BODY, headers={"X-Request-Id": "shop-42", "X-Client-Id": "me"})
    assert answer.headers["x-request-id"] == "shop-42"
    job = answer.headers["x-superdiff-id"]
    taken, answered = (line for line in lines() if line.get("request_id") == "shop-42")
    assert (taken["message"], taken["job_id"], taken["models"], taken["steps"]) == ("job taken in", job, "pixels", 2)
    ms = answered.pop("ms")
    assert ms > 0
    assert {key: answered[key] for key in ("method", "path", "status", "caller", "job_id")} == {
        "method": "POST",
        "path": OR,
        "status": 200,
        "caller": "address:testclient",
        "job_id": job,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answered["time"])


def test_probes_are_not_written(models, lines):
    with TestClient(app_of(models)) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
    assert not [line for line in lines() if line["message"] == "answered"]


def test_a_job_s_own_address_names_it_too(models, lines):
    with TestClient(app_of(models)) as client:
        client.get("/v1/jobs/abc")
    (answered,) = [line for line in lines() if line["message"] == "answered"]
    assert (answered["status"], answered["job_id"]) == (404, "abc")


@pytest.mark.parametrize("wanted", [False, True])
def test_prompts_are_written_only_where_the_operator_wants_it(models, lines, wanted):
    catalog = Catalog.of({"one": models["one"]})
    with TestClient(create_app(Settings(preload=False, log_prompts=wanted), catalog=catalog)) as client:
        told = client.post(OR, json={"components": [PROMPT], "steps": 1})
        assert told.status_code == 200
        assert client.post(OR, json={"components": [PROMPT], "steps": 0}).status_code == 422
    assert (PROMPT in json.dumps(lines())) == wanted


@pytest.mark.parametrize("sent", ["", "a" * 129, "a b", "a\nb", "<script>", "ä", None])
def test_an_id_that_is_none_is_replaced(sent):
    assert re.fullmatch(r"[0-9a-f]{32}", accepted_id(sent))


def test_what_nobody_foresaw_has_the_request_s_id_and_one_line(models, lines, monkeypatch):
    app = app_of(models)
    app.add_api_route("/bug", lambda: 1 / 0)
    with TestClient(app) as client:
        answer = client.get("/bug", headers={"X-Request-Id": "shop-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "shop-7")
    assert answer.json()["detail"] == "The service failed at this request. Tell its operator the request id shop-7."
    failed, answered = (line for line in lines() if line.get("request_id") == "shop-7")
    assert "ZeroDivisionError" in failed["exception"]
    assert [line["request_id"] for line in (failed, answered)] == ["shop-7"] * 2
    assert answered["status"] == 500


# A worker's own lines have the job's id alone.
@pytest.mark.embedded
def test_a_job_that_fails_says_so_with_both_ids(models, lines, monkeypatch):
    app = app_of(models)

    def broken(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(app.state.services.backend.engine._executor, "start", broken)
    with TestClient(app) as client:
        answer = client.post(OR, json=BODY, headers={"X-Request-Id": "shop-8"})
    assert answer.status_code == 500
    (failed,) = [line for line in lines() if "no luck" in line.get("exception", "") and line["job_id"]][:1]
    assert failed["request_id"] == "shop-8"


def test_lines_for_people_are_one_line_whatever_a_client_sent():
    record = logging.LogRecord("service", logging.INFO, "", 0, "answered", (), None)
    record.fields = {"caller": "client:a\nERROR forged", "status": 200, "job_id": None}
    with about(request="r1"):
        told = PrettyLines().format(record)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d INFO service: answered request_id=r1 caller='client:a\\nERROR forged' status=200", told
    )


def test_the_format_and_the_level_are_the_operator_s(capsys):
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    try:
        set_up(LogFormat.JSON, LogLevel.WARNING)
        logging.getLogger("service").info("unimportant")
        logging.getLogger("service").warning("important")
    finally:
        root.handlers[:], level = kept
        root.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "important"


# A worker's spans are told by the worker, and are no children of the request's.
@pytest.mark.embedded
def test_a_request_and_its_job_have_spans(models):
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    simple = pytest.importorskip("opentelemetry.sdk.trace.export").SimpleSpanProcessor
    provider, spans = sdk.TracerProvider(), export.InMemorySpanExporter()
    provider.add_span_processor(simple(spans))
    catalog = Catalog.of({"pixels": models["pixels"]})
    app = create_app(Settings(preload=False), catalog=catalog, tracing=tracing.Tracing(provider))
    with TestClient(app) as client:
        client.get("/healthz")
        job = client.post(OR, json=BODY).headers["x-superdiff-id"]
    told = {span.name: span for span in spans.get_finished_spans()}
    assert not any("healthz" in name for name in told)
    request = told[f"POST {OR}"]
    steps = [told[f"superdiff {name}"] for name in ("queue", "run", "decode")]
    assert {span.parent.span_id for span in steps} == {request.context.span_id}
    assert {span.attributes["superdiff.job"] for span in steps} == {job}
    assert [first.end_time <= second.start_time for first, second in pairwise(steps)] == [
        True,
        True,
    ]
    assert steps[1].attributes["superdiff.steps"] == 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_traces_are_off_unless_the_environment_asks_for_them(monkeypatch, environment, expected):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted() is expected


def test_openmp_s_threads_sleep_soon_unless_the_operator_says_otherwise():
    plain, told = {}, {"OMP_WAIT_POLICY": "active"}
    for environment in (plain, told):
        bound_spinning(environment)
    assert (plain, told) == ({"GOMP_SPINCOUNT": "1000"}, {"OMP_WAIT_POLICY": "active"})
