"""The client that the integrations share: its words, its addresses, and that nothing stays behind on the server."""

import http.server
import json
import threading

import httpx
import pytest

from integrations.client import CancelledError, Client, Progress, ServiceError, words
from service.engine.job import Phase


@pytest.mark.parametrize(
    ("status", "body", "retry_after", "said"),
    [
        (422, {"detail": "both", "errors": [{"pointer": "#/steps", "detail": "too many"}]}, None, "steps: too many"),
        (
            422,
            {"errors": [{"pointer": "#/a/0/b", "detail": "is wrong"}, {"pointer": "", "detail": "and that"}]},
            None,
            "a/0/b: is wrong; and that",
        ),
        (
            429,
            {"title": "Too Many Requests", "detail": "the queue is full"},
            "5",
            "the queue is full (try again in 5 s)",
        ),
        (503, {"title": "Service Unavailable"}, None, "Service Unavailable"),
        (502, "<html>", None, "the service answered 502 Bad Gateway"),
        (799, [], None, "the service answered 799 (unknown status)"),
    ],
)
def test_a_refusal_in_plain_words(status, body, retry_after, said):
    data = body if isinstance(body, str) else json.dumps(body)
    assert words(status, data.encode(), retry_after) == said


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "file:///etc/passwd", "ftp://here", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ServiceError, match=r"must look like http://127\.0\.0\.1:8000"):
        Client(url)


def test_this_machine_is_asked_without_a_proxy(service, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (first, *_) = Client(service.url + "/").models()
    assert (first["id"], first["default"]) == ("shapes", True)


BODY = {"expression": '"a red circle" AND "a blue star"', "steps": 3, "seed": 7}


def test_a_picture_is_the_one_that_the_service_answers(service):
    drawn = Client(service.url).draw(BODY)
    alone = httpx.post(f"{service.url}/v1/superpose", json=BODY, headers={"Accept": "image/png"}, timeout=60)
    assert drawn.pictures == [alone.content]
    assert drawn.result["images"][0]["seed"] == 7
    assert len(Client(service.url).draw(BODY | {"num_images": 2}).pictures) == 2


def states(service, steps):
    return [j["status"] for j in httpx.get(f"{service.url}/v1/jobs").json()["data"] if j["steps"] == steps]


def test_whoever_stops_leaves_nothing_on_the_server(service):
    seen = []
    with pytest.raises(CancelledError):
        Client(service.url).draw(BODY | {"steps": 991}, seen.append, lambda: len(seen) > 2)
    assert all(isinstance(progress, Progress) and progress.steps == 991 for progress in seen)
    assert states(service, 991) == ["cancelled"]


def test_a_fault_while_waiting_leaves_nothing_on_the_server(service):
    def fall(_):
        raise RuntimeError("the editor has gone")

    with pytest.raises(RuntimeError, match="the editor has gone"):
        Client(service.url).draw(BODY | {"steps": 992}, fall)
    assert states(service, 992) == ["cancelled"]


def test_a_job_that_fails_says_why(service):
    with pytest.raises(ServiceError, match=r"^the job was failed: "):
        Client(service.url).draw(BODY | {"steps": 993, "timeout_s": 0.5})


def test_every_state_of_a_job_is_waited_for_or_final():
    """The client names what is final and waits through all else."""
    assert {"completed", "failed", "cancelled"} < {phase.value for phase in Phase}


@pytest.fixture
def stranger():
    """Another server at the address."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_another_server_at_the_address_is_recognised(stranger):
    with pytest.raises(ServiceError, match="is not one of superdiff-serve's; is something else listening there"):
        Client(stranger).models()
