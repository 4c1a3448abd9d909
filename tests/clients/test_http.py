"""A real client and a real server process, over the models that ship."""

import base64
import contextlib
import io
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from pipelines.builtin.oracle import holds, read_picture
from tests.pipelines.families import tiny
from tests.servers import start

AND, OR = "/v1/superpose/and", "/v1/superpose/or"
BODY_OF = {"steps": 10, "seed": 7}
BODY = {"components": ["a red circle", "a blue star"]} | BODY_OF


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def decoded(answer):
    assert answer.status_code == 200, answer.text
    return [pixels(base64.b64decode(image["b64_json"])) for image in answer.json()["images"]]


@pytest.mark.parametrize("path", [AND, OR])
def test_json_and_png_carry_the_same_picture(client, path):
    (inside,) = decoded(client.post(path, json=BODY))
    bare = client.post(path, json=BODY, headers={"Accept": "image/png"})
    assert bare.headers["content-type"] == "image/png"
    assert inside.shape == (64, 64, 3)
    np.testing.assert_array_equal(inside, pixels(bare.content))


def test_the_same_seed_gives_the_same_bytes(client):
    first, second = (client.post(AND, json=BODY, headers={"Accept": "image/png"}).content for _ in range(2))
    assert first == second


def test_three_images_equal_three_requests(client):
    together = client.post(AND, json=BODY | {"num_images": 3})
    for picture, told in zip(decoded(together), together.json()["images"], strict=True):
        (alone,) = decoded(client.post(AND, json=BODY | {"seed": told["seed"]}))
        assert np.abs(picture.astype(int) - alone).max() <= 1


def test_a_named_thing_is_drawn(client):
    """One prompt, eight pictures, 25 steps: at a rate of 97 % fewer than six of eight has a chance below 1 in 500."""
    body = {"components": ["a green triangle"], "steps": 25, "seed": 1, "num_images": 8}
    drawn = decoded(client.post(OR, json=body))
    assert sum(holds(read_picture(picture), "a green triangle") for picture in drawn) >= 6


def test_balanced_and_balances_the_densities(client):
    answer = client.post(AND, json=BODY | {"num_images": 4, "steps": 25, "method": "balanced"}).json()
    for image in answer["images"]:
        first, second = image["log_density"].values()
        assert first == pytest.approx(second, abs=0.5)


SUPERPOSE = "/v1/superpose"
NESTED = '"a red circle" AND ("a blue star" OR "a green square")'


def test_a_text_and_its_tree_are_one_request(client):
    tree = {"and": ["a red circle", {"or": ["a blue star", "a green square"]}]}
    text, nested = (client.post(SUPERPOSE, json=BODY_OF | {"expression": e}) for e in (NESTED, tree))
    np.testing.assert_array_equal(decoded(text)[0], decoded(nested)[0])
    (image,) = text.json()["images"]
    assert list(image["nodes"]) == [NESTED, '"a blue star" OR "a green square"']


def test_what_is_asked_for_is_drawn_and_what_is_not_has_no_lift(client):
    """Best of 4, eight pictures of fixed seeds: at a rate of 93 % fewer than six have a chance below 1 in 50."""
    body = {"expression": '"a red circle" AND "a blue star"', "candidates": 4, "num_images": 8, "seed": 100}
    answer = client.post(SUPERPOSE, json=body | {"include_lift_maps": True})
    both = [holds(read, "a red circle") and holds(read, "a blue star") for read in map(read_picture, decoded(answer))]
    assert sum(both) >= 6
    for image in answer.json()["images"]:
        assert 0 <= image["candidate"] < 4
        for lift_map in image["lift_maps"].values():
            assert pixels(base64.b64decode(lift_map["b64_json"])).shape == (64, 64, 3)
    whole = answer.json()["images"][both.index(True)]["b64_json"]
    asked = {"expression": '"a red circle" OR "a green triangle"', "image": whole, "seed": 1}
    told = client.post("/v1/density", json=asked).json()
    # It shows a red circle and no green triangle.
    assert told["explanations"]["a red circle"]["posterior"] > 0.99
    mixture = told["nodes"]['"a red circle" OR "a green triangle"']["log_density"]
    assert mixture == pytest.approx(told["explanations"]["a red circle"]["log_density"] - np.log(2), abs=1)


def test_a_text_s_fault_is_told_by_its_column(client):
    answer = client.post(SUPERPOSE, json={"expression": "a AND (b OR"})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["column"]) == ("#/expression", 12)


def test_concurrent_requests_are_all_served_as_if_alone(client, server):
    bodies = [
        {
            "components": ["a red circle", {"prompt": "a blue star", "model": model}][: 1 + i % 2],
            "steps": 3 + i % 5,
            "seed": i,
        }
        for i, model in enumerate(["shapes", "shapes-sharp"] * 6)
    ]
    paths = [AND if i % 3 else OR for i in range(len(bodies))]

    def ask(path, body):
        return decoded(httpx.post(server.url + path, json=body, timeout=120))[0]

    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(ask, paths, bodies))
    for path, body, picture in zip(paths, bodies, together, strict=True):
        alone = ask(path, body)
        assert np.abs(picture.astype(int) - alone).max() <= 1


def test_a_refusal_names_the_field(client):
    answer = client.post(OR, json=BODY | {"steps": 0})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"] == [{"pointer": "#/steps", "detail": "input should be greater than or equal to 1"}]


def mine(client, name):
    return client.get("/v1/jobs", headers={"X-Client-Id": name}).json()["data"]


def until(condition, seconds=60):
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to be")


LONG = BODY | {"steps": 1000, "num_images": 8}


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_client_that_goes_away_cancels_its_job(client, server, accept):
    headers = {"X-Client-Id": accept, "Accept": accept}
    # Leaves after a second: in the middle of the events, or while it waits for the answer.
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", server.url + OR, json=LONG, headers=headers, timeout=1) as stream,
    ):
        began = time.monotonic()
        next(chunk for chunk in stream.iter_raw() if time.monotonic() - began > 1)
    until(lambda: [job["status"] for job in mine(client, accept)] == ["cancelled"])


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_with_a_key_the_job_outlives_the_connection(client, server, accept):
    name = f"key {accept}"
    headers = {"X-Client-Id": name, "Idempotency-Key": "again"}
    body = BODY | {"steps": 60}
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", server.url + OR, json=body, headers=headers | {"Accept": accept}, timeout=0.3) as stream,
    ):
        next(stream.iter_raw())
    (left,) = mine(client, name)
    again = client.post(OR, json=body, headers=headers)
    assert again.status_code == 200, again.text
    assert again.json()["id"] == left["id"]
    assert [job["status"] for job in mine(client, name)] == ["completed"]


@pytest.mark.process
def test_sigterm_finishes_what_runs_turns_away_what_waits_and_ends(tmp_path):
    running = start(tmp_path / "log", SUPERDIFF_RUNNING_ROWS="3", SUPERDIFF_GRACE_S="60")
    body = BODY | {"steps": 150}
    with httpx.Client(base_url=running.url, timeout=120) as client, ThreadPoolExecutor(3) as pool:
        names = {"X-Client-Id": "me"}
        # As many as run at once, and one that waits.
        run = ["running" for _ in client.get("/v1/workers").json()["workers"]]
        served = [pool.submit(client.post, AND, json=body, headers=names) for _ in run]
        until(lambda: [job["status"] for job in mine(client, "me")] == run)
        turned_away = pool.submit(client.post, AND, json=body, headers=names)
        until(lambda: sorted(job["status"] for job in mine(client, "me")) == ["queued", *run])
        running.process.terminate()
        until(lambda: client.get("/readyz").status_code == 503)
        late = client.post(OR, json=BODY)
        assert (late.status_code, late.headers["content-type"]) == (503, "application/problem+json")
        assert int(late.headers["retry-after"]) >= 1
        assert turned_away.result(60).status_code == 503
        assert [each.result(60).status_code for each in served] == [200] * len(run)
    assert running.process.wait(60) in (0, -15)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "Application shutdown complete" in log


@pytest.mark.process
def test_a_catalogue_of_the_operator_s_own(tmp_path):
    """Models of two data spaces from folders, and every kind of refusal on the wire."""
    tiny.stable_diffusion(tmp_path / "sd")
    tiny.unconditional(tmp_path / "ddpm")
    catalog = tmp_path / "superdiff.toml"
    catalog.write_text('[models.latent]\nsource = "sd"\n[models.pixel]\nsource = "ddpm"\n')
    running = start(tmp_path / "log", SUPERDIFF_CATALOG=str(catalog))
    try:
        with httpx.Client(base_url=running.url, timeout=60) as client:
            assert [m["composes_with"] for m in client.get("/v1/models").json()["data"]] == [[], []]
            assert decoded(client.post(AND, json=BODY | {"steps": 2}))[0].shape == (16, 16, 3)
            across = {"components": ["a", {"prompt": "", "model": "pixel"}]}
            unknown = {"components": [{"prompt": "a", "model": "none"}]}
            json_type = {"Content-Type": "application/json"}
            answers = {
                422: client.post(AND, json=across),
                404: client.post(AND, json=unknown),
                400: client.post(AND, content=b"{", headers=json_type),
                415: client.post(AND, content=b"{}", headers={"Content-Type": "text/plain"}),
                413: client.post(AND, content=b" " * (33 << 20), headers=json_type),
                405: client.get(AND),
            }
            for status, answer in answers.items():
                assert answer.status_code == status, answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["status"] == status
            assert "latent: latent" in answers[422].json()["detail"]
            catalog.write_text('[models.latent]\nsource = "sd"\n')
            running.process.send_signal(signal.SIGHUP)
            until(lambda: [m["id"] for m in client.get("/v1/models").json()["data"]] == ["latent"])
            catalog.write_text("[models.latent")
            running.process.send_signal(signal.SIGHUP)
            until(lambda: "the catalogue stays as it was: superdiff.toml: not TOML" in (tmp_path / "log").read_text())
            assert client.post(AND, json=BODY | {"steps": 2}).status_code == 200
    finally:
        running.stop()


def test_a_wrong_catalogue_stops_the_start_with_one_line(tmp_path):
    catalog = tmp_path / "superdiff.toml"
    catalog.write_text('[models.a]\nsource = "x"\ndtype = "int4"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--catalog", str(catalog)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert "models.a.dtype: 'int4' is not allowed; it must be one of float32" in ended.stderr
    assert "Traceback" not in ended.stderr
