"""The OpenAI Images dialect, asked by OpenAI's own client, against a real server over the models that ship."""

import base64
import io
import json
import re
import runpy
import subprocess
import time
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.clients.test_http import pixels, until

NATIVE = "/v1/superpose"
HOW = {"steps": 4, "seed": 7}
EXTRA = {"superdiff": HOW}
LONG = {"superdiff": {"steps": 1000, "candidates": 8}}
AND = '"a red circle" AND ("a blue star" OR "a green square")'
TREE = {"and": ["a red circle", {"or": ["a blue star", "a green square"]}]}
DOCUMENT = Path(__file__).parents[2] / "docs/openai.md"


def client_of(server, key, **options):
    """The client holds every answer to its own types."""
    options = {"max_retries": 0, "timeout": 60, "_strict_response_validation": True} | options
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **options)


@pytest.fixture
def client(server):
    with client_of(server, "me") as client:
        yield client


@pytest.fixture
def native(server):
    with httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": "Bearer me"}) as native:
        yield native


def shown(files):
    """What pictures show; their files say besides what they began from, which each dialect sends in its own way."""
    return [np.asarray(Image.open(io.BytesIO(file))).tolist() for file in files]


def files(answer):
    return [base64.b64decode(image.b64_json) for image in answer.data]


def drawn_natively(native, **body):
    answer = native.post(NATIVE, json=HOW | body)
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["images"]]


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def checkered(width=64, height=64):
    """A picture of squares, as a file."""
    rows, columns = np.indices((height, width)) // 8
    return png(np.where(((rows + columns) % 2)[..., None], (200, 40, 40), (40, 40, 200)).astype(np.uint8))


def half_clear(width=64, height=64):
    """A mask that asks for the left half."""
    mask = np.full((height, width, 4), 255, np.uint8)
    mask[:, : width // 2, 3] = 0
    return png(mask)


@pytest.mark.parametrize(("size", "sides"), [("auto", (64, 64)), ("48x64", (48, 64))])
def test_as_many_pictures_as_asked_of_the_size_asked(client, native, size, sides):
    answer = client.images.generate(prompt="a red circle", n=2, size=size, extra_body=EXTRA)
    assert [Image.open(io.BytesIO(file)).size for file in files(answer)] == [sides, sides]
    assert (answer.size, answer.output_format) == ("{}x{}".format(*sides), "png")
    width, height = sides
    expected = drawn_natively(native, expression="a red circle", num_images=2, width=width, height=height)
    assert files(answer) == expected


def test_the_usage_is_the_networks_rows(client):
    """A prompt with guidance asks two questions at each of 4 steps, for each of 2 pictures."""
    usage = client.images.generate(prompt="a red circle", n=2, extra_body=EXTRA).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (0, 16, 16)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_formats_and_their_compression_inside_and_by_address(client, output_format):
    def asked(response_format, **options):
        answer = client.images.generate(
            prompt="a red circle",
            response_format=response_format,
            output_format=output_format,
            extra_body=EXTRA,
            **options,
        )
        assert answer.output_format == output_format
        return answer

    (small,), (large,) = (files(asked("b64_json", output_compression=share)) for share in (5, 100))
    assert len(small) < len(large) / 2
    assert Image.open(io.BytesIO(small)).format == output_format.upper()
    (image,) = asked("url", output_compression=5).data
    assert image.b64_json is None
    fetched = httpx.get(image.url)
    assert fetched.headers["content-type"] == f"image/{output_format}"
    assert fetched.content == small


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": AND, "extra_body": EXTRA},
        {"prompt": "unread", "extra_body": {"superdiff": HOW | {"expression": AND}}},
        {"prompt": "unread", "extra_body": {"superdiff": HOW | {"expression": TREE}}},
    ],
)
def test_what_is_composed_is_what_the_native_dialect_draws(client, native, asked):
    assert files(client.images.generate(**asked)) == drawn_natively(native, expression=TREE)


def test_every_other_extra_field_is_the_native_one(client, native):
    extra = {"candidates": 2, "particles": 2, "guidance_scale": 3, "negative_prompt": "7", "kernel": "exact"}
    answer = client.images.generate(prompt="a red circle", extra_body={"superdiff": HOW | extra})
    assert files(answer) == drawn_natively(native, expression="a red circle", **extra)


@pytest.mark.parametrize(
    ("prompt", "components"),
    [
        ("a cat on a mat, 8k (sharp:1.2)", None),
        ('a sign that says "STOP AND GO"', None),
        ("an android, and ANDROIDS", None),
        ('"DO NOT ENTER"', ["DO NOT ENTER"]),
        ("a cat AND a dog", ["a cat", "a dog"]),
    ],
)
def test_when_a_prompt_is_an_expression(client, native, prompt, components):
    answer = client.images.with_raw_response.generate(prompt=prompt, extra_body={"superdiff": {"steps": 1}})
    job = native.get(f"/v1/jobs/{answer.headers['x-superdiff-id']}").json()
    assert job["components"] == (components or [prompt])


def test_the_model_is_that_of_prompts_that_name_none(client, native):
    answer = client.images.with_raw_response.generate(
        prompt='"a red circle" AND "a blue star"@shapes-round', model="shapes-sharp", extra_body=EXTRA
    )
    job = native.get(f"/v1/jobs/{answer.headers['x-superdiff-id']}").json()
    assert job["models"] == ["shapes-sharp", "shapes-round"]


def test_what_is_ignored_and_what_is_null_changes_nothing(client):
    plain = client.images.generate(prompt="a red circle", extra_body=EXTRA)
    told = client.images.generate(
        prompt="a red circle",
        n=None,
        size=None,
        background="transparent",
        moderation="low",
        quality="low",
        style="vivid",
        user="someone",
        extra_body=EXTRA,
    )
    assert files(told) == files(plain)
    assert (told.quality, told.background) == ("high", "opaque")


def test_an_edit_keeps_what_is_opaque_in_the_mask(client, native):
    image, mask = checkered(), half_clear()
    answer = client.images.edit(image=image, mask=mask, prompt="a blue star", extra_body=EXTRA)
    (file,) = files(answer)
    before, after = pixels(image), pixels(file)
    np.testing.assert_array_equal(after[:, 32:], before[:, 32:])
    assert (after[:, :32] != before[:, :32]).any(-1).mean() > 0.5
    white = png(255 - np.asarray(Image.open(io.BytesIO(mask)))[..., 3])
    sent = {"image": base64.b64encode(image).decode(), "mask": base64.b64encode(white).decode()}
    assert shown([file]) == shown(drawn_natively(native, expression="a blue star", **sent))


def test_an_edit_without_a_mask_begins_from_the_whole_picture(client, native):
    image = checkered(48, 64)
    sent = {"expression": "a blue star", "image": base64.b64encode(image).decode()}
    answer = client.images.edit(image=image, prompt="a blue star", extra_body=EXTRA)
    assert answer.size == "48x64"
    assert shown(files(answer)) == shown(drawn_natively(native, **sent))
    weak = client.images.edit(image=[image], prompt="a blue star", extra_body={"superdiff": HOW | {"strength": 0.5}})
    assert shown(files(weak)) == shown(drawn_natively(native, strength=0.5, **sent)) != shown(files(answer))


@pytest.mark.parametrize(
    "superdiff",
    [
        HOW | {"expression": {"or": ["a red circle", "2"], "temperature": 0.5}, "negative_prompt": "1"},
        json.dumps(HOW | {"expression": {"or": [{"prompt": "a red circle"}, "2"], "temperature": 0.5}})[:-1]
        + ', "negative_prompt": "1"}',
    ],
)
def test_extra_fields_in_a_form_as_the_client_nests_them_or_as_json(client, native, superdiff):
    image = checkered()
    answer = client.images.edit(image=image, prompt="unread", n=2, extra_body={"superdiff": superdiff})
    expression = {"or": ["a red circle", "2"], "temperature": 0.5}
    sent = {"image": base64.b64encode(image).decode(), "negative_prompt": "1", "num_images": 2}
    assert shown(files(answer)) == shown(drawn_natively(native, expression=expression, **sent))


@pytest.mark.parametrize(
    ("given", "param", "told"),
    [
        ({"image": [b"a", b"b"]}, "image", "one image"),
        ({"image": b"no picture"}, "image", "must be one of PNG"),
        ({"mask": png(np.zeros((64, 64, 3), np.uint8))}, "mask", "transparent"),
        ({"mask": half_clear(32, 32)}, "mask", "32×32"),
        ({"n": 11}, "n", "10"),
        ({"markup": half_clear()}, "markup", "not a file"),
        ({"extra_body": {"colour": "red"}}, "colour", "there is no field `colour`"),
        ({"extra_body": {"superdiff": {"steps": "many"}}}, "superdiff.steps", "integer"),
        ({"extra_body": {"superdiff": "{"}}, "superdiff", "not JSON"),
        ({"extra_body": {"superdiff": {"expression": {"or": [{"prompt": "a"}]}}}}, "superdiff.expression", "JSON"),
    ],
)
def test_a_wrong_form_is_refused_by_the_field(client, given, param, told):
    with pytest.raises(openai.UnprocessableEntityError, match=told) as refused:
        client.images.edit(**{"image": checkered(), "prompt": "a"} | given)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("given", "param", "told"),
    [
        ({"size": "large"}, "size", "WIDTHxHEIGHT"),
        ({"size": "65x64"}, "size", "multiple of 16"),
        ({"n": 0}, "n", "at least 1|greater than or equal to 1"),
        ({"output_compression": 50}, "output_compression", "jpeg or webp"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"stream": True, "n": 2}, "n", "one picture"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
        ({"partial_images": 1}, "partial_images", "stream"),
        ({"stream": True, "partial_images": 4}, "partial_images", "3"),
        ({"frame_count": 3}, "frame_count", "there is no field `frame_count`"),
        ({"prompt": "a cat (sitting) AND a dog"}, "prompt", "at column 7"),
        ({"extra_body": {"superdiff": {"steps": 0}}}, "superdiff.steps", "1"),
        ({"extra_body": {"superdiff": {"steps": 1000, "candidates": 16, "particles": 64}}}, "superdiff.steps", "rows"),
        ({"extra_body": {"superdiff": {"num_images": 2}}}, "superdiff.num_images", "called n"),
        ({"extra_body": {"superdiff": {"image": "x"}}}, "superdiff.image", "called image"),
        (
            {"extra_body": {"superdiff": {"expression": {"and": ["a", {"not": 3}]}}}},
            "superdiff.expression.and[1].not",
            "a term is",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(client, given, param, told):
    with pytest.raises(openai.UnprocessableEntityError, match=told) as refused:
        client.images.generate(**{"prompt": "a"} | given)
    error = refused.value
    assert (error.param, error.type, error.code) == (param, "invalid_request_error", "invalid_value")


def test_a_fault_in_an_expression_tells_its_column(client):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(prompt="a cat AND (a dog OR")
    assert (refused.value.param, refused.value.body["column"]) == ("prompt", 20)


def test_a_model_that_there_is_not(client):
    for asked in ({"prompt": "a", "model": "gpt-image-2"}, {"prompt": "a AND b@gpt"}):
        with pytest.raises(openai.NotFoundError, match="shapes-sharp") as refused:
            client.images.generate(**asked)
        assert refused.value.param == ("model" if "model" in asked else "prompt")
        assert (refused.value.type, refused.value.code) == ("invalid_request_error", "model_not_found")


def test_a_body_that_cannot_be_read(client):
    headers = {"Content-Type": "application/json"}
    with pytest.raises(openai.BadRequestError, match="not JSON") as refused:
        client.post("/images/generations", cast_to=object, content=b'{"prompt": ', options={"headers": headers})
    assert refused.value.code == "bad_request"
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/images/edits", cast_to=object, body={"prompt": "a"})
    assert (refused.value.status_code, refused.value.code) == (415, "unsupported_media_type")
    with pytest.raises(openai.NotFoundError) as refused:
        client.post("/images/variations", cast_to=object, body={"prompt": "a"})
    assert refused.value.code == "unknown_url"


@pytest.mark.parametrize("content", [b"--y\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"])
def test_a_form_that_cannot_be_read(native, content):
    """What no client sends."""
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = native.post("/v1/images/edits", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_request"


def test_a_body_that_is_too_large(client):
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.edit(image=bytes(33 << 20), prompt="a")
    assert (refused.value.status_code, refused.value.code) == (413, "request_entity_too_large")


def test_a_key_stands_for_one_job(client):
    def asked(prompt, key):
        headers = {"Idempotency-Key": key}
        return client.images.with_raw_response.generate(prompt=prompt, extra_headers=headers, extra_body=EXTRA)

    first, again, other = asked("a", "one"), asked("a", "one"), asked("a", "two")
    assert first.headers["x-superdiff-id"] == again.headers["x-superdiff-id"] != other.headers["x-superdiff-id"]
    with pytest.raises(openai.ConflictError) as refused:
        asked("b", "one")
    assert refused.value.code == "conflict"


def test_a_key_of_an_edit_stands_for_its_pictures_too(client):
    def asked(image):
        headers = {"Idempotency-Key": "edit"}
        return client.images.edit(image=image, prompt="a", extra_headers=headers, extra_body=EXTRA)

    assert files(asked(checkered())) == files(asked(checkered()))
    with pytest.raises(openai.ConflictError):
        asked(checkered(48, 64))


@pytest.fixture
def crowded(server):
    """A caller with as many jobs as it may have: a function that ends them."""
    headers = {"Authorization": "Bearer crowd", "Prefer": "respond-async"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as crowd:
        # Long enough to be there, and short enough for a Retry-After that the client heeds, two minutes at most.
        body = {"expression": "a", "steps": 200}
        paths = []

        def leave():
            for path in paths:
                crowd.delete(path)

        try:
            paths.extend(crowd.post(NATIVE, json=body).headers["location"] for _ in range(16))
            yield leave
        finally:
            # Left to themselves, they would slow all tests that follow.
            leave()


@pytest.mark.usefixtures("crowded")
def test_too_many_requests_are_refused_with_a_time_to_come_again(server):
    with client_of(server, "crowd") as client, pytest.raises(openai.RateLimitError) as refused:
        client.images.generate(prompt="a", extra_body=EXTRA)
    assert (refused.value.type, refused.value.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_the_client_comes_again_when_it_was_told_to(server, crowded, monkeypatch):
    told, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        crowded()

    monkeypatch.setattr("openai._base_client.time", SimpleNamespace(sleep=sleep, time=time.time))
    with client_of(server, "crowd", max_retries=1) as client:
        client._client.event_hooks["response"].append(lambda answer: told.append(answer.headers.get("retry-after")))
        assert files(client.images.generate(prompt="a", extra_body=EXTRA))
    assert slept == [float(told[0])]
    assert told[1:] == [None]


def test_a_stream_shows_partial_images_and_then_the_picture(client):
    how = {"superdiff": {"steps": 16, "seed": 7}}
    (whole,) = files(client.images.generate(prompt="a red circle", extra_body=how))
    with client.images.generate(prompt="a red circle", stream=True, partial_images=3, extra_body=how) as stream:
        *partial, last = list(stream)
    assert 1 <= len(partial) <= 3
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    for event in partial:
        assert event.type == "image_generation.partial_image"
        picture = Image.open(io.BytesIO(base64.b64decode(event.b64_json)))
        assert (picture.format, "{}x{}".format(*picture.size)) == ("PNG", event.size)
        assert abs(event.created_at - time.time()) < 60
    assert last.type == "image_generation.completed"
    assert base64.b64decode(last.b64_json) == whole
    assert (last.size, last.usage.output_tokens) == ("64x64", 32)


def test_a_stream_of_an_edit(client):
    image, mask = checkered(), half_clear()
    asked = {"image": image, "mask": mask, "prompt": "a", "output_format": "webp", "extra_body": EXTRA}
    with client.images.edit(stream=True, **asked) as stream:
        (event,) = list(stream)
    assert (event.type, event.output_format) == ("image_edit.completed", "webp")
    assert [base64.b64decode(event.b64_json)] == files(client.images.edit(**asked))


def test_a_stream_ends_with_done(native):
    answer = native.post("/v1/images/generations", json={"prompt": "a", "stream": True} | EXTRA)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-superdiff-id"]
    events = [line for line in answer.text.splitlines() if line and not line.startswith(":")]
    assert events[0] == "event: image_generation.completed"
    assert events[-1] == "data: [DONE]"


def test_a_failure_on_the_way_is_raised_by_the_client(client):
    late = {"superdiff": LONG["superdiff"] | {"timeout_s": 0.5}}
    with (
        client.images.generate(prompt="a", stream=True, extra_body=late) as stream,
        pytest.raises(openai.APIError, match=r"not done within 0\.5 s") as failed,
    ):
        list(stream)
    assert (failed.value.type, failed.value.code) == ("server_error", "gateway_timeout")
    with pytest.raises(openai.InternalServerError) as failed:
        client.images.generate(prompt="a", extra_body=late)
    assert failed.value.status_code == HTTPStatus.GATEWAY_TIMEOUT


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_job(server, stream):
    key = f"leaves {stream}"
    with client_of(server, key, timeout=1) as client:
        if stream:
            client.images.generate(prompt="a", stream=True, extra_body=LONG).close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.images.generate(prompt="a", extra_body=LONG)

    def statuses():
        jobs = httpx.get(f"{server.url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).json()
        return [job["status"] for job in jobs["data"]]

    until(lambda: statuses() == ["cancelled"])


def test_the_models_are_the_client_s(client):
    models = list(client.models.list())
    assert [model.id for model in models] == ["shapes", "shapes-round", "shapes-sharp"]
    assert all(model.object == "model" and 0 < model.created <= time.time() for model in models)
    assert client.models.retrieve("shapes-round").id == "shapes-round"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-2")


def test_the_document_s_examples_run(server, tmp_path, monkeypatch, capsys):
    """The Python blocks as one program, then the commands, in a folder that has a mask."""
    monkeypatch.chdir(tmp_path)
    Path("mask.png").write_bytes(half_clear())
    text = DOCUMENT.read_text().replace("http://127.0.0.1:8000", server.url)
    program, commands = ("\n".join(re.findall(rf"```{word}\n(.*?)```", text, re.DOTALL)) for word in ("python", "bash"))
    Path("program.py").write_text(program)
    names = runpy.run_path("program.py")
    names["client"].close()
    assert pixels(Path("composed-1.png").read_bytes()).shape == (64, 64, 3)
    (edited,) = files(names["edited"])
    np.testing.assert_array_equal(pixels(edited)[:, 32:], pixels(Path("composed-0.png").read_bytes())[:, 32:])
    assert "image_generation.completed 64x64" in capsys.readouterr().out
    subprocess.run(["bash", "-euc", commands], check=True, timeout=60)
    (told,) = json.loads(Path("edited.json").read_text())["data"]
    assert base64.b64decode(told["b64_json"]) == edited
    assert json.loads(Path("answer.json").read_text())["size"] == "64x64"
