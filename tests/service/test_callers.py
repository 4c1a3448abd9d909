"""Who may ask what over HTTP: keys, scopes, limits, and whose job is whose; in process, over small real models."""

import base64
import time
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from pipelines.catalog import Catalog
from service import quotas
from service.app import create_app
from service.callers import Scope
from service.settings import Settings
from tests.service.keys import KeysIn, NewKey

AND = "/v1/superpose/and"
BODY = {"components": ["a red circle", "a blue star"], "steps": 3, "seed": 5, "include_trajectory": True}
LONG = BODY | {"steps": 1000, "num_images": 8}
ASYNC = {"Prefer": "respond-async"}
TXT2IMG = {"prompt": "a cat", "steps": 2, "width": 16, "height": 16}
IMAGES = {"prompt": "a cat", "superdiff": {"steps": 2}}
DIALECTS = {AND: BODY, "/v1/images/generations": IMAGES, "/sdapi/v1/txt2img": TXT2IMG}


def bearer(text):
    return {"Authorization": f"Bearer {text}"}


def basic(text, user="anyone"):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{text}".encode()).decode()}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return KeysIn(tmp_path_factory.mktemp("keys") / "keys.sqlite")


@pytest.fixture(scope="module")
def me(store):
    return NewKey(store, "me")


@pytest.fixture(scope="module")
def other(store):
    return NewKey(store, "other")


@pytest.fixture(scope="module")
def client(models, store, me):
    settings = Settings(database=store.url, running_rows=24)
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as client:
        yield client


@pytest.fixture(scope="module")
def anyone(models):
    settings = Settings(database="memory:", caller_jobs=2, running_rows=24)
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as client:
        yield client


def test_every_route_but_those_that_anyone_needs_is_closed(client):
    """Read from the application itself, so that a new route is closed too."""
    is_open = {"/", "/healthz", "/readyz", "/docs", "/openapi.json"}
    seen = 0
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            answer = client.request(method, path.format(**dict.fromkeys(("job_id", "name"), "x"), index=0, component=0))
            assert (answer.status_code == 401) is (path not in is_open), (method, path)
            seen += 1
    assert seen > 40
    for path in is_open:
        assert client.get(path).status_code == 200, path
    assert client.get("/web/js/main.js").status_code == 200
    assert client.get("/nothing").status_code == 401


@pytest.mark.parametrize("path", DIALECTS)
def test_a_key_lets_in(client, me, path):
    assert client.post(path, json=DIALECTS[path], headers=me.headers).status_code == 200


def test_the_web_ui_s_clients_send_it_as_a_password(client, me):
    for user in ("me", "", "somebody else"):
        answer = client.post("/sdapi/v1/txt2img", json=TXT2IMG, headers=basic(me.text, user))
        assert answer.status_code == 200
    # A browser would send a remembered password for any page that asks: elsewhere it is none.
    assert client.post(AND, json=BODY, headers=basic(me.text)).status_code == 401


def test_refusals_are_in_each_dialect_s_words(client):
    native = client.post(AND, json=BODY)
    assert native.headers["content-type"] == "application/problem+json"
    assert native.headers["www-authenticate"] == 'Bearer realm="superdiff"'
    assert "an API key is needed: send one as Authorization: Bearer KEY" in native.json()["detail"]
    wrong = client.post(AND, json=BODY, headers=bearer("sd_0_0"))
    assert wrong.headers["www-authenticate"] == 'Bearer realm="superdiff", error="invalid_token"'
    images = client.post("/v1/images/generations", json=IMAGES, headers=bearer("wrong"))
    assert images.json()["error"]["type"] == "authentication_error"
    assert images.json()["error"]["code"] == "invalid_api_key"
    webui = client.post("/sdapi/v1/txt2img", json=TXT2IMG, headers=basic("wrong"))
    assert webui.headers["www-authenticate"] == 'Basic realm="superdiff", charset="UTF-8"'
    assert set(webui.json()) == {"error", "detail", "body", "errors"}
    assert client.post("/internal/progress", json={}).headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic !!", "Basic //8=", "Digest x", "sd_1_2", "Bearer sd_é_x"]
)
def test_what_is_no_key_is_no_key(client, header):
    for path, body in DIALECTS.items():
        assert client.post(path, json=body, headers={"Authorization": header.encode()}).status_code == 401


def test_a_body_is_not_read_for_who_has_no_key(client):
    assert client.post(AND, content=b"{", headers={"Content-Type": "application/json"}).status_code == 401


def test_a_revoked_and_an_expired_key_are_refused_at_once(client, store):
    short, gone = NewKey(store, "short", expires=time.time() - 1), NewKey(store, "gone")
    assert client.get("/v1/models", headers=gone.headers).status_code == 200
    store.revoke(gone.key.id, time.time())
    assert "'gone' was revoked" in client.get("/v1/models", headers=gone.headers).json()["detail"]
    assert "'short' has expired" in client.get("/v1/models", headers=short.headers).json()["detail"]


def test_a_scope_that_is_missing_is_named(client, me, store):
    watcher, admin = NewKey(store, "prometheus", Scope.READ_METRICS), NewKey(store, "root", Scope.ADMIN)
    refused = client.get("/metrics", headers=me.headers)
    assert refused.status_code == 403
    assert "lacks the scope 'read-metrics'" in refused.json()["detail"]
    assert 'error="insufficient_scope", scope="read-metrics"' in refused.headers["www-authenticate"]
    assert client.get("/metrics", headers=watcher.headers).text.startswith("# HELP")
    answers = {path: client.post(path, json=body, headers=watcher.headers) for path, body in DIALECTS.items()}
    assert {answer.status_code for answer in answers.values()} == {403}
    assert answers["/v1/images/generations"].json()["error"]["code"] == "insufficient_permissions"
    assert "'generate'" in answers["/sdapi/v1/txt2img"].json()["detail"]
    for path in ("/metrics", "/v1/models"):
        assert client.get(path, headers=admin.headers).status_code == 200
    # There is nothing here yet; what comes is closed.
    statuses = [client.get("/v1/admin/x", headers=key.headers).status_code for key in (me, watcher, admin)]
    assert statuses == [403, 403, 404]


JOB_ROUTES = ["", "/events", "/images/0", "/lift-maps/0/0", "/trajectory"]


def test_another_s_job_is_not_there_on_any_route(client, me, other, store):
    made = client.post(AND, json=BODY | {"include_lift_maps": True}, headers=me.headers).json()["id"]
    for route in JOB_ROUTES:
        assert client.get(f"/v1/jobs/{made}{route}", headers=me.headers).status_code == 200, route
        for key in (other, NewKey(store, f"root of {route}", Scope.ADMIN)):
            answer = client.get(f"/v1/jobs/{made}{route}", headers=key.headers)
            assert answer.status_code == 404, route
            assert answer.json()["detail"] == f"there is no job '{made}', or none any more"
    assert client.get("/v1/jobs", headers=other.headers).json()["data"] == []


def test_another_s_running_job_cannot_be_cancelled_or_watched(client, me, other):
    path = client.post(AND, json=LONG, headers=me.headers | ASYNC).headers["location"]
    try:
        assert client.delete(path, headers=other.headers).status_code == 404
        assert client.post("/sdapi/v1/interrupt", headers=basic(other.text)).json() == {}
        assert client.get(path, headers=me.headers).json()["status"] in {"queued", "running"}
    finally:
        assert client.delete(path, headers=me.headers).json()["status"] == "cancelled"


def test_idempotency_keys_are_each_caller_s_own(client, me, other):
    once = {"Idempotency-Key": "once"}
    first, second = (client.post(AND, json=BODY, headers=key.headers | once).json()["id"] for key in (me, other))
    assert first != second
    assert client.post(AND, json=BODY, headers=me.headers | once).json()["id"] == first


def test_every_setting_of_the_web_ui_is_its_caller_s(client, me, other):
    client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "two"}, headers=basic(me.text))
    found = [client.get("/sdapi/v1/options", headers=basic(key.text)).json() for key in (me, other)]
    assert [each["sd_model_checkpoint"] for each in found] == ["two", "one"]


def test_labels_group_jobs_and_give_no_room(anyone):
    """Without keys a caller is an address, however it calls itself."""
    names = [{"X-Client-Id": "a"}, {"X-Client-Id": "b"}, {"Authorization": "Bearer c"}, basic("d")]
    paths = [anyone.post(AND, json=LONG, headers=name | ASYNC).headers["location"] for name in names[:2]]
    try:
        for name in names:
            refused = anyone.post(AND, json=LONG, headers=name | ASYNC)
            assert refused.status_code == 429
            assert "2 jobs waiting or running, and 2 are allowed" in refused.json()["detail"]
        listed = [[job["id"] for job in anyone.get("/v1/jobs", headers=name).json()["data"]] for name in names]
        assert [[path.rpartition("/")[2]] for path in paths] == listed[:2]
        assert listed[2:] == [[], []]
        assert len(anyone.get("/v1/jobs").json()["data"]) == 2
    finally:
        for path in paths:
            anyone.delete(path)


def test_the_user_of_the_openai_dialect_is_a_label(anyone):
    made = anyone.post("/v1/images/generations", json=IMAGES | {"user": "ann"}).headers["x-superdiff-id"]
    assert [job["id"] for job in anyone.get("/v1/jobs", headers={"X-Client-Id": "ann"}).json()["data"]] == [made]


def test_jobs_of_another_address_are_not_there(models):
    app = create_app(Settings(database="memory:"), catalog=Catalog.of(models))
    with TestClient(app, client=("10.0.0.1", 1)) as one:
        path = one.post(AND, json=BODY, headers=ASYNC).headers["location"]
        # A forwarded address is a client's word, unless the proxy is trusted.
        two = TestClient(app, client=("10.0.0.2", 1), headers={"X-Forwarded-For": "10.0.0.1"})
        assert (one.get(path).status_code, two.get(path).status_code) == (200, 404)
        assert two.delete(path).status_code == 404


def test_requests_beyond_a_minute_s_wait_until_there_is_room(client, store, monkeypatch):
    key = NewKey(store, "three", requests_per_minute=3)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    answers = []
    for _ in range(4):
        answers.append(client.get("/v1/models", headers=key.headers))
        now += 10
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit"] for answer in answers] == [
        '"requests";r=2;t=60',
        '"requests";r=1;t=50',
        '"requests";r=0;t=40',
        '"requests";r=0;t=30',
    ]
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=60'
    refused = answers[3]
    assert refused.headers["retry-after"] == "30"
    assert "the limit 'requests' of this API key is reached: 3 a minute" in refused.json()["detail"]
    now += int(refused.headers["retry-after"]) - 10 - 1
    assert client.get("/v1/models", headers=key.headers).status_code == 429
    now += 1.01
    assert client.get("/v1/models", headers=key.headers).status_code == 200


def test_pixel_steps_of_a_day_and_a_request_that_never_fits(client, store, monkeypatch):
    # Two components and the unconditional, 16 × 16 pixels, three steps.
    cost = 3 * 16 * 16 * 3
    key = NewKey(store, "days", pixel_steps_per_day=2 * cost)
    now = time.time()
    # The quotas' clock alone: by the jobs' own, jobs would be late.
    monkeypatch.setattr(quotas, "time", SimpleNamespace(time=lambda: now))
    first = client.post(AND, json=BODY, headers=key.headers)
    assert first.status_code == 200
    assert first.headers["ratelimit"] == f'"pixel-steps";r={cost};t=86400'
    assert first.headers["ratelimit-policy"] == f'"pixel-steps";q={2 * cost};qu="pixel-steps";w=86400'
    again = {"Idempotency-Key": "again"}
    assert {client.post(AND, json=BODY, headers=key.headers | again).status_code for _ in range(3)} == {200}
    now += 3600
    for path, body in DIALECTS.items():
        refused = client.post(path, json=body, headers=key.headers)
        assert refused.status_code == 429, path
        assert refused.headers["retry-after"] == str(86400 - 3600)
        assert "'pixel-steps'" in refused.text
    never = client.post(AND, json=BODY | {"steps": 9}, headers=key.headers)
    assert never.status_code == 422
    assert never.json()["errors"][0]["pointer"] == "#/steps"
    now += 86400 - 3600 + 1
    assert client.post(AND, json=BODY, headers=key.headers).status_code == 200


def test_a_day_outlives_a_restart_is_one_for_all_processes_and_forgets_refused_jobs(models, tmp_path):
    store = KeysIn(tmp_path / "keys.sqlite")
    cost = 3 * 16 * 16 * 3
    key = NewKey(store, "days", pixel_steps_per_day=2 * cost)
    settings = Settings(database=store.url, artifacts=str(tmp_path / "files"), preload=False)

    def service():
        return TestClient(create_app(settings, catalog=Catalog.of(models)), headers=key.headers)

    with service() as one, service() as two:
        assert one.post(AND, json=BODY).headers["ratelimit"].startswith(f'"pixel-steps";r={cost};')
        assert two.get("/v1/models").headers["ratelimit"].startswith(f'"pixel-steps";r={cost};')
        two.portal.call(two.app.state.services.backend.stop, 0)
        for headers in ({}, ASYNC):
            assert two.post(AND, json=BODY, headers=headers).status_code == 503
        assert two.get("/v1/models").headers["ratelimit"].startswith(f'"pixel-steps";r={cost};')
    with service() as again:
        assert again.post(AND, json=BODY).status_code == 200
        assert again.post(AND, json=BODY).status_code == 429


def test_a_key_s_jobs_at_once(client, store):
    key = NewKey(store, "one", concurrent_jobs=1)
    first = client.post(AND, json=LONG, headers=key.headers | ASYNC)
    try:
        assert first.headers["ratelimit-policy"] == '"concurrent-jobs";q=1;qu="concurrent-requests"'
        assert first.headers["ratelimit"] == '"concurrent-jobs";r=0'
        refused = client.post(AND, json=BODY, headers=key.headers)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "1 are allowed at once" in refused.json()["detail"]
    finally:
        client.delete(first.headers["location"], headers=key.headers)
    assert client.post(AND, json=BODY, headers=key.headers).status_code == 200


def test_callers_without_limits_are_told_of_none(client, me):
    assert "ratelimit" not in client.get("/v1/models", headers=me.headers).headers


def test_a_key_that_is_revoked_while_it_is_the_last_leaves_nobody_in(models, tmp_path):
    store = KeysIn(tmp_path / "keys.sqlite")
    key = NewKey(store, "last")
    with TestClient(create_app(Settings(database=store.url), catalog=Catalog.of(models))) as client:
        store.revoke(key.key.id, time.time())
        assert client.get("/v1/models", headers=key.headers).status_code == 401
        assert client.get("/v1/models").status_code == 401


def test_an_application_that_others_reach_does_not_start_without_keys(models):
    settings = Settings(host="0.0.0.0", database="memory:")
    with (
        pytest.raises(Exception, match="superdiff keys create NAME"),
        TestClient(create_app(settings, catalog=Catalog.of(models))),
    ):
        pass
