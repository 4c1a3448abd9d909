"""What a PNG says of itself: the request in it, sent as it is, draws the same picture again; over small real models."""

import base64
import hashlib
import io
from dataclasses import fields
from importlib.metadata import version

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines import grammar
from pipelines.catalog import Catalog
from pipelines.composition import And, Prompt
from pipelines.params import SamplingParams
from pipelines.plan import make_plan
from service.app import create_app
from service.metadata import chunk, read, recipe
from service.pictures import encode_picture
from service.schemas.requests import SuperposeRequest
from service.settings import Settings
from tests.service.test_images import encoded, half, noise

SUPERPOSE = "/v1/superpose"
EXPRESSION = '"a red circle" AND[sharpness=0.05] ("a blue star"@two OR "a fox"{negative: "blur"}:1)'
BODY = {
    "expression": EXPRESSION,
    "steps": 3,
    "guidance_scale": 2.5,
    "guidance_start": 0.4,
    "negative_prompt": "grey",
    "kernel": "posterior",
    "width": 24,
    "height": 16,
    "candidates": 2,
    "select": "density",
    "particles": 2,
    "seed": 11,
}


@pytest.fixture(scope="module")
def client(models):
    with TestClient(create_app(Settings(), catalog=Catalog.of(models))) as client:
        yield client


def files(client, body):
    answer = client.post(SUPERPOSE, json=body)
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["images"]], answer.json()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_the_request_in_a_picture_draws_the_very_same_file(client):
    (original,), _ = files(client, BODY)
    told = read(original)
    assert (told["product"], told["version"]) == ("superdiff-serve", version("superdiff-serve"))
    assert told["path"] == SUPERPOSE
    assert "source" not in told
    (again,), _ = files(client, told["request"])
    assert again == original


def test_each_picture_of_several_is_told_alone(client):
    several, answer = files(client, BODY | {"num_images": 3})
    for data, image in zip(several, answer["images"], strict=True):
        request = read(data)["request"]
        assert (request["num_images"], request["seed"]) == (1, image["seed"])
        assert (request["candidates"], request["particles"], request["select"]) == (2, 2, "density")
        (alone,), _ = files(client, request)
        # The networks' float32 rounding depends on how many rows one forward has.
        assert np.abs(pixels(alone) - pixels(data)).max() <= 1
        assert read(alone) == read(data)


def test_what_was_left_to_the_model_is_written_out(client):
    (data,), _ = files(client, {"expression": "a red circle AND a blue star", "seed": 3})
    request = read(data)["request"]
    assert request["expression"] == '"a red circle"@one AND "a blue star"@one'
    sampling = {field.name for field in fields(SamplingParams)} & set(SuperposeRequest.model_fields)
    assert sampling <= set(request)
    assert all(request[name] is not None for name in sampling)
    assert (request["width"], request["height"], request["strength"]) == (16, 16, 1.0)


@pytest.mark.parametrize("path", ["answer", "bare", "job", "events"])
def test_every_way_to_a_png_carries_it(client, path):
    body = {"expression": "a", "steps": 1, "seed": 3}
    match path:
        case "answer":
            data = files(client, body)[0][0]
        case "bare":
            data = client.post(SUPERPOSE, json=body, headers={"Accept": "image/png"}).content
        case "job":
            told = client.post(SUPERPOSE, json=body | {"output_format": "webp"}).json()
            data = client.get(f"/v1/jobs/{told['id']}/images/0", params={"format": "png"}).content
        case "events":
            stream = client.post(SUPERPOSE, json=body, headers={"Accept": "text/event-stream"}).text
            data = base64.b64decode(stream.rpartition('"b64_json":"')[2].partition('"')[0])
    assert read(data)["request"]["expression"] == '"a"@one'
    assert read(data)["request"]["seed"] == 3


def test_a_picture_from_a_picture_names_its_source_and_keeps_none_of_it(client):
    source, mask = encoded(noise(19, 17)), encoded(half(19, 17))
    (data,), _ = files(client, BODY | {"image": f"data:image/png;base64,{source}", "mask": mask, "strength": 0.8,
                                       "width": 19, "height": 17, "fit": "pad", "mask_feather": 2})  # fmt: skip
    told = read(data)
    assert told["source"] == {
        "image_sha256": hashlib.sha256(base64.b64decode(source)).hexdigest(),
        "mask_sha256": hashlib.sha256(base64.b64decode(mask)).hexdigest(),
        "painted": "white",
    }
    assert not {"image", "mask"} & set(told["request"])
    assert (told["request"]["width"], told["request"]["height"]) == (19, 17)
    (again,), _ = files(client, told["request"] | {"image": source, "mask": mask})
    assert again == data


def test_the_picture_is_the_same_with_and_without_its_text():
    drawn = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    plain, told = encode_picture(drawn, "png"), encode_picture(drawn, "png", {"a": "b", "superdiff": '{"request":{}}'})
    np.testing.assert_array_equal(pixels(plain), pixels(told))
    assert Image.open(io.BytesIO(told)).text == {"a": "b", "superdiff": '{"request":{}}'}
    assert encode_picture(drawn, "webp", {"a": "b"}) == encode_picture(drawn, "webp")
    assert read(told) == {"request": {}}
    assert read(plain) is None


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"request": 1}', "[" * 100_000])
def test_what_holds_no_recipe_has_none(text):
    drawn = np.zeros((2, 2, 3), np.uint8)
    assert read(encode_picture(drawn, "png", {"superdiff": text})) is None
    for broken in (b"", b"GIF89a", encode_picture(drawn, "jpeg"), encode_picture(drawn, "png")[:20]):
        assert read(broken) is None


def test_any_text_is_kept_in_ascii(models):
    """A chunk of type tEXt holds Latin-1; the strictest reader takes ASCII."""
    plan = make_plan(Prompt("猫 \"'\\\n🦊", "one"), SamplingParams(seed=2**53 - 1), {"one": models["one"].card})
    ((keyword, text),) = chunk(recipe(plan, 0)).items()
    assert (keyword, text.isascii()) == ("superdiff", True)
    data = encode_picture(np.zeros((2, 2, 3), np.uint8), "png", {keyword: text})
    assert b"tEXtsuperdiff\0{" in data
    expression = read(data)["request"]["expression"]
    assert grammar.parse(expression, default_model="x", models=["one"]) == plan.expression
    # Past the last seed counting begins again.
    assert recipe(plan, 1)["request"]["seed"] == 0


def test_an_expression_too_long_as_text_is_a_tree(models):
    prompts = tuple(Prompt(chr(1) * 3000 + str(i), "one") for i in range(16))
    plan = make_plan(And(prompts), SamplingParams(), {"one": models["one"].card})
    request = recipe(plan, 0)["request"]
    body = SuperposeRequest.model_validate(request)
    assert not isinstance(body.expression, str)
    assert body.written(["one"]).expression == plan.expression


def test_a_picture_whose_source_cannot_be_sent_again_promises_nothing(client):
    """The WebUI's dialect makes the picture that is sampled from what was sent: no client has a file of it."""
    asked = {"prompt": "a fox", "width": 16, "height": 16, "steps": 2, "seed": 3}
    started = {"init_images": [encoded(noise(16, 16))], "denoising_strength": 0.5}
    drawn, redrawn = (
        client.post(f"/sdapi/v1/{path}", json=asked | more) for path, more in (("txt2img", {}), ("img2img", started))
    )
    assert read(base64.b64decode(drawn.json()["images"][0]))["request"]["seed"] == 3
    assert read(base64.b64decode(redrawn.json()["images"][0])) is None
    assert read(client.get(f"/v1/jobs/{redrawn.headers['X-Superdiff-Id']}/images/0").content) is None
