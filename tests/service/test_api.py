"""The routes in process, over small real models."""

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.catalog import Catalog
from pipelines.entry import Entry
from service.api.problem import MEDIA_TYPE
from service.app import create_app
from service.engine.engine import Engine
from service.engine.executor import Executor
from service.settings import Settings

AND, OR = "/v1/superpose/and", "/v1/superpose/or"
BODY = {"components": ["a red circle", {"prompt": "a blue star", "model": "two"}], "steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def client(models):
    settings = Settings(max_body_bytes=64 * 1024, max_pixels=16 * 16 * 8, max_job_work=20_000)
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as client:
        yield client


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


def pictures(answer):
    assert answer.status_code == 200, answer.text
    return [pixels(base64.b64decode(image["b64_json"])) for image in answer.json()["images"]]


def refused(answer, status):
    """The problem document of a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    problem = answer.json()
    assert problem["status"] == status
    return problem


@pytest.mark.parametrize("path", [AND, OR])
def test_a_composition_answers_with_pictures_densities_and_weights(client, path):
    balanced = {"method": "balanced"} if path == AND else {}
    answer = client.post(path, json=BODY | balanced | {"num_images": 2, "include_trajectory": True})
    body = answer.json()
    assert [p.shape for p in pictures(answer)] == [(16, 16, 3)] * 2
    assert body["components"] == ["a red circle @one", "a blue star @two"]
    assert body["models"] == ["one", "two"]
    assert body["seed"] == 5
    assert [image["seed"] for image in body["images"]] == [5, 6]
    for image in body["images"]:
        assert set(image["log_density"]) == set(image["weight"]) == set(body["components"])
        assert sum(image["weight"].values()) == pytest.approx(1)
    if path == AND:
        first, second = body["images"][0]["log_density"].values()
        assert first == pytest.approx(second, abs=1e-2)
    assert len(body["trajectory"]) == 3
    assert body["trajectory"][-1]["sigma"] == 0
    assert np.shape(body["trajectory"][0]["weight"]) == (2, 2)
    assert body["timings"]["steps"] == 3


def test_the_same_seed_gives_the_same_bytes(client):
    first, second = (client.post(OR, json=BODY).json()["images"][0]["b64_json"] for _ in range(2))
    assert first == second
    assert client.post(OR, json=BODY | {"seed": 6}).json()["images"][0]["b64_json"] != first


def test_several_images_equal_single_requests(client):
    together = client.post(AND, json=BODY | {"num_images": 3})
    for i, picture in enumerate(pictures(together)):
        seed = together.json()["images"][i]["seed"]
        (alone,) = pictures(client.post(AND, json=BODY | {"seed": seed}))
        assert np.abs(picture - alone).max() <= 1


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_the_bare_picture_by_accept_and_the_format_by_field(client, image_format):
    bare = client.post(OR, json=BODY, headers={"Accept": f"image/{image_format}"})
    assert bare.headers["content-type"] == f"image/{image_format}"
    assert bare.headers["x-superdiff-seed"] == "5"
    assert [type(x) for x in json.loads(bare.headers["x-superdiff-log-density"])] == [float, float]
    assert sum(json.loads(bare.headers["x-superdiff-weight"])) == pytest.approx(1)
    assert Image.open(io.BytesIO(bare.content)).format == image_format.upper()
    inside = client.post(OR, json=BODY | {"output_format": image_format}).json()["images"][0]["b64_json"]
    assert base64.b64decode(inside) == bare.content


def test_a_bare_picture_whatever_the_prompts(client):
    body = {"components": ["über 猫\n\"'" + "🦊" * 3000, "b"], "steps": 1}
    answer = client.post(OR, json=body, headers={"Accept": "image/png"})
    assert answer.status_code == 200
    assert len(answer.headers["x-superdiff-weight"]) < 200
    # A single step adds no noise, so nothing was estimated.
    assert json.loads(answer.headers["x-superdiff-log-density"]) == [None, None]
    named = client.post(OR, json=body).json()
    assert named["components"] == body["components"]
    assert named["images"][0]["log_density"] == dict.fromkeys(body["components"])


def test_the_lines_of_a_header_are_one_list(client):
    headers = [("Accept", "application/pdf"), ("Accept", "image/png")]
    assert client.post(OR, json=BODY, headers=headers).headers["content-type"] == "image/png"


def test_a_step_without_noise_estimates_nothing(client):
    told = client.post(OR, json=BODY | {"steps": 1, "include_trajectory": True}).json()
    (point,) = told["trajectory"]
    assert point["log_density"] == [[None, None]]
    assert sum(point["weight"][0]) == pytest.approx(1)


def test_a_bare_picture_of_several_is_refused_before_any_work(client):
    problem = refused(client.post(OR, json=BODY | {"num_images": 2}, headers={"Accept": "image/png"}), 406)
    assert "num_images is 2" in problem["detail"]


def test_other_sizes(client):
    (picture,) = pictures(client.post(OR, json=BODY | {"width": 24, "height": 16}))
    assert picture.shape == (16, 24, 3)


BAD = [
    ({"components": []}, "#/components", "at least 1"),
    ({"components": ["a"] * 17}, "#/components", "at most 16"),
    ({"components": [{"prompt": "a", "wieght": 1}]}, "#/components/0/wieght", "did you mean `weight`?"),
    ({"components": [{"model": "one"}]}, "#/components/0/prompt", "required"),
    ({"components": [7]}, "#/components/0", "valid dictionary"),
    ({"components": ["x" * 4001]}, "#/components/0/prompt", "at most 4000"),
    ({"components": [{"prompt": "a", "weight": 1e5}]}, "#/components/0/weight", "less than or equal to 10000"),
    ({"components": [{"prompt": "a", "model": ""}]}, "#/components/0/model", "at least 1 character"),
    ({"negative_prompt": "x" * 4001}, "#/negative_prompt", "at most 4000"),
    ({"guidance_scale": -0.1}, "#/guidance_scale", "greater than or equal to 0"),
    ({"guidance_scale": 101}, "#/guidance_scale", "less than or equal to 100"),
    ({"steps": 0}, "#/steps", "greater than or equal to 1"),
    ({"steps": 1001}, "#/steps", "less than or equal to 1000"),
    ({"steps": 2.5}, "#/steps", "valid integer"),
    ({"seed": -1}, "#/seed", "greater than or equal to 0"),
    ({"seed": 2**53}, "#/seed", "less than 9007199254740992"),
    ({"num_images": 0}, "#/num_images", "greater than or equal to 1"),
    ({"num_images": 65}, "#/num_images", "less than or equal to 64"),
    ({"width": 4}, "#/width", "greater than or equal to 8"),
    ({"width": 18}, "#/width", "multiple of 4"),
    ({"height": 4100}, "#/height", "less than or equal to 4096"),
    ({"num_images": 9}, "#/num_images", "allows 2048 in one request"),
    ({"width": 64, "height": 64}, "#/width", "allows 2048 in one request"),
    ({"steps": 1000, "num_images": 8}, "#/steps", "4 network rows × 8 images × 1000 steps is 32000"),
    ({"timeout_s": 4000}, "#/timeout_s", "at most 3600 here"),
    ({"kernel": "magic"}, "#/kernel", "'calibrated', 'posterior'"),
    ({"kernel": "deterministic"}, "#/kernel", "estimates no density"),
    ({"output_format": "gif"}, "#/output_format", "'png', 'jpeg' or 'webp'"),
    ({"response_format": "file"}, "#/response_format", "'b64_json' or 'url'"),
    ({"include_trajectory": "perhaps"}, "#/include_trajectory", "valid boolean"),
    ({"preview_every": -1}, "#/preview_every", "greater than or equal to 0"),
    ({"preview_every": 1001}, "#/preview_every", "less than or equal to 1000"),
    ({"priority": 10}, "#/priority", "less than or equal to 9"),
    ({"priority": -1}, "#/priority", "greater than or equal to 0"),
    ({"timeout_s": 0}, "#/timeout_s", "greater than 0"),
    ({"timeout_s": 1e6}, "#/timeout_s", "less than or equal to 86400"),
    ({"stpes": 3}, "#/stpes", "there is no field `stpes`; did you mean `steps`?"),
]


@pytest.mark.parametrize("path", [AND, OR])
@pytest.mark.parametrize(("change", "pointer", "told"), BAD, ids=[pointer + told for _, pointer, told in BAD])
def test_every_bound_is_refused_naming_the_field(client, path, change, pointer, told):
    problem = refused(client.post(path, json=BODY | change), 422)
    (error,) = [error for error in problem["errors"] if error["pointer"] == pointer]
    assert told in error["detail"]


@pytest.mark.parametrize(
    ("path", "change", "pointer"),
    [
        (OR, {"temperature": -1}, "#/temperature"),
        (OR, {"lift": 1}, "#/lift"),
        (AND, {"lift": 20000}, "#/lift"),
        (AND, {"temperature": 1}, "#/temperature"),
    ],
)
def test_each_operator_has_its_own_fields(client, path, change, pointer):
    problem = refused(client.post(path, json=BODY | change), 422)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_all_faults_are_named_at_once(client):
    problem = refused(client.post(OR, json={"components": ["a"], "steps": 0, "seed": -1, "extra": 1}), 422)
    assert {error["pointer"] for error in problem["errors"]} == {"#/steps", "#/seed", "#/extra"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", "3"),
        ("steps", True),
        ("steps", 2.5),
        ("seed", "7"),
        ("guidance_scale", "4"),
        ("guidance_scale", True),
        ("num_images", "2"),
        ("width", "16"),
        ("priority", False),
        ("timeout_s", "60"),
        ("include_trajectory", "yes"),
        ("include_trajectory", 1),
        ("temperature", "1"),
        ("mask_feather", True),
    ],
)
def test_what_only_looks_like_the_type_is_refused(client, field, value):
    (error,) = refused(client.post(OR, json=BODY | {field: value}), 422)["errors"]
    assert error["pointer"] == f"#/{field}"


def test_a_whole_number_is_a_number(client):
    assert client.post(OR, json=BODY | {"guidance_scale": 2, "temperature": 1}).status_code == 200


def test_an_unknown_model_is_404_and_the_known_ones_are_named(client):
    problem = refused(client.post(AND, json={"components": ["a", {"prompt": "b", "model": "three"}]}), 404)
    assert "'three'" in problem["detail"]
    assert "one, two, pixels" in problem["detail"]
    assert [error["pointer"] for error in problem["errors"]] == ["#/components/1/model"]
    refused(client.get("/v1/models/three"), 404)


def test_models_without_a_common_space_are_422_and_both_spaces_are_named(client):
    body = {"components": ["a", {"prompt": "", "model": "pixels"}]}
    problem = refused(client.post(AND, json=body), 422)
    assert "one: latent" in problem["detail"]
    assert "pixels: pixel" in problem["detail"]


def test_a_prompt_to_a_model_without_prompts_is_422(client):
    problem = refused(client.post(OR, json={"components": [{"prompt": "a cat", "model": "pixels"}]}), 422)
    assert problem["errors"][0]["pointer"] == "#/components/0/prompt"
    ok = client.post(OR, json={"components": [{"prompt": "", "model": "pixels"}], "steps": 2})
    assert pictures(ok)[0].shape == (8, 8, 3)


def test_models_tell_what_they_compose_with(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    by_name = {info["id"]: info for info in listed["data"]}
    assert by_name["one"]["composes_with"] == ["two"]
    assert by_name["pixels"]["composes_with"] == []
    assert by_name["one"]["space"] == by_name["two"]["space"]
    assert by_name["one"]["default"]
    assert by_name["pixels"]["takes_prompts"] is False
    assert client.get("/v1/models/two").json() == by_name["two"]


def test_health_readiness_and_documentation(client):
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").json()["status"] == "ready"
    assert client.get("/docs").status_code == 200
    described = client.get("/openapi.json").json()
    assert {AND, OR, "/v1/models", "/healthz", "/readyz"} <= set(described["paths"])
    assert set(described["paths"][AND]["post"]["responses"]) >= {"200", "400", "404", "422", "429", "503"}


def test_a_broken_model_is_503_and_the_others_serve_on(folders, tmp_path):
    broken = tmp_path / "broken"
    (broken / "unet").mkdir(parents=True)
    (broken / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    catalog = Catalog([Entry("one", folders / "one"), Entry("broken", broken)])
    with TestClient(create_app(Settings(), catalog=catalog)) as client:
        wait_until_ready(client)
        problem = refused(client.post(OR, json={"components": [{"prompt": "a", "model": "broken"}]}), 503)
        assert "broken: cannot be loaded" in problem["detail"]
        assert client.get("/readyz").json()["detail"] == "not loaded: broken"
        assert str(tmp_path) not in json.dumps(problem)
        assert client.post(OR, json={"components": ["a"], "steps": 1}).status_code == 200


def wait_until_ready(client):
    for _ in range(600):
        if client.get("/readyz").status_code == 200:
            return
        time.sleep(0.05)
    raise AssertionError(client.get("/readyz").text)


def test_a_service_without_any_model_is_never_ready(tmp_path):
    catalog = Catalog([Entry("gone", tmp_path / "gone")])
    with TestClient(create_app(Settings(), catalog=catalog)) as client:
        for _ in range(600):
            problem = refused(client.get("/readyz"), 503)
            if "still being loaded" not in problem["detail"]:
                break
            time.sleep(0.05)
        assert problem["detail"] == "no model could be loaded; the log says why"
        assert client.get("/healthz").status_code == 200


class Slow(Catalog):
    """A catalogue that takes its time."""

    def get(self, name):
        self.go.wait(60)
        return super().get(name)


# tests.behind waits for workers that are ready.
@pytest.mark.embedded
def test_a_model_that_is_still_being_loaded_is_503_with_retry_after(folders):
    catalog = Slow([Entry("one", folders / "one")])
    catalog.go = threading.Event()
    with TestClient(create_app(Settings(), catalog=catalog)) as client:
        answer = client.post(OR, json={"components": ["a"]})
        assert "still being loaded" in refused(answer, 503)["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        refused(client.get("/readyz"), 503)
        catalog.go.set()
        wait_until_ready(client)
        assert client.post(OR, json={"components": ["a"], "steps": 1}).status_code == 200


# A worker loads every model once, to tell what it is.
@pytest.mark.embedded
def test_a_model_that_was_not_preloaded_is_loaded_when_asked_for(folders):
    catalog = Catalog([Entry("one", folders / "one")])
    with TestClient(create_app(Settings(preload=False), catalog=catalog)) as client:
        wait_until_ready(client)
        assert client.get("/v1/models/one").json()["loaded"] is False
        assert client.post(OR, json={"components": ["a"], "steps": 1}).status_code == 200
        assert client.get("/v1/models/one").json()["loaded"] is True


def test_a_dead_engine_turns_healthz_red_and_refuses(models):
    catalog = Catalog.of(models)
    engine = Engine(Executor(catalog))
    with TestClient(create_app(Settings(), catalog=catalog, engine=engine)) as client:
        assert client.get("/healthz").status_code == 200
        engine.stop()
        refused(client.get("/healthz"), 503)
        refused(client.get("/readyz"), 503)
        answer = client.post(OR, json=BODY)
        assert "shutting down" in refused(answer, 503)["detail"]
        assert int(answer.headers["retry-after"]) >= 1


def test_a_header_at_fault_is_named_as_one(client):
    problem = refused(client.post(OR, json=BODY, headers={"X-Client-Id": "x" * 300}), 422)
    assert problem["errors"][0]["pointer"] == "#/header/x-client-id"


def test_two_applications_share_nothing(models):
    one, two = (create_app(Settings(), catalog=Catalog.of({name: models[name]})) for name in ("one", "two"))
    with TestClient(one) as first, TestClient(two) as second:
        assert [m["id"] for m in first.get("/v1/models").json()["data"]] == ["one"]
        assert [m["id"] for m in second.get("/v1/models").json()["data"]] == ["two"]
