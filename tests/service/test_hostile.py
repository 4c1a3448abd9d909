"""Requests that nobody should send: each is refused by its status, in its dialect's form, shortly."""

import base64
import json
import re
import struct
import zlib
from dataclasses import dataclass, field

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.catalog import Catalog
from service.api.problem import MEDIA_TYPE
from service.app import create_app
from service.settings import Settings
from tests.service.test_images import encoded, half, noise

AND, OR, TEXT, DENSITY = "/v1/superpose/and", "/v1/superpose/or", "/v1/superpose", "/v1/density"
GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
TXT2IMG, IMG2IMG, PNG_INFO = "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/png-info"
JSON = {"Content-Type": "application/json"}
SETTINGS = Settings(max_body_bytes=2 << 20, max_pixels=16 * 16 * 64, max_image_pixels=100_000)
MOST_BYTES = 4096


@dataclass(frozen=True)
class Case:
    """A request and what it shall get."""

    name: str
    status: int
    path: str
    told: str = ""
    method: str = "POST"
    sent: dict = field(default_factory=dict)


def text(name, status, body, told="", path=OR, **headers):
    content = body if isinstance(body, bytes) else body.encode()
    return Case(name, status, path, told, sent={"content": content, "headers": JSON | headers})


def fields(name, status, told="", path=OR, **body):
    whole = {"components": ["a"], "steps": 1} if path in {AND, OR} else {}
    return text(name, status, json.dumps(whole | body), told, path)


def get(name, status, path, told="", method="GET", **headers):
    return Case(name, status, path, told, method, {"headers": headers})


def form(name, status, told="", image=None, mask=None, fields=(), **kinds):
    files = [("image", image or PNG)] if image != b"" else []
    files += [("mask", mask)] if mask else []
    return Case(name, status, EDIT, told, sent={"files": files, "data": {"prompt": "a"} | dict(fields)} | kinds)


def multipart(name, status, content, told="", content_type="multipart/form-data; boundary=b"):
    return Case(name, status, EDIT, told, sent={"content": content, "headers": {"Content-Type": content_type}})


def file_of(image, image_format="png", **options):
    return base64.b64decode(encoded(image, image_format, **options))


def in_base64(data):
    return base64.b64encode(data).decode()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, depth=8, colour=2):
    """A PNG of a header and chunks, whatever they say."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def text_bomb():
    """A PNG of 4 × 4 pixels with a text chunk of 100 MB, packed."""
    chunks = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (100 << 20), 9))
    pixels = zlib.compress(b"\0" * (4 * (1 + 4 * 3)))
    return png(4, 4, chunks, chunk(b"IDAT", pixels))


PNG = file_of(noise(16, 16))
PICTURE = in_base64(PNG)
CLEAR = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
WHITE_AND_CLEAR = CLEAR.copy()
WHITE_AND_CLEAR.paste((255, 255, 255, 255), (0, 0, 8, 16))

NOT_JSON = [
    text("nothing", 400, "", "empty"),
    text("null", 400, "null", "null"),
    text("a list", 422, "[]"),
    text("a string", 422, '"a cat"'),
    text("a number", 422, "7"),
    text("half a body", 400, '{"components": ["a"]', "not JSON"),
    text("a comma too many", 400, '{"components": ["a"],}', "line 1, column 22"),
    text("single quotes", 400, "{'components': ['a']}", "not JSON"),
    text("comments", 400, '{"components": ["a"] /* one */}', "not JSON"),
    text("two bodies", 400, '{"components": ["a"]}{"components": ["b"]}', "extra data"),
    text("NaN", 400, '{"components": ["a"], "guidance_scale": NaN}', "NaN"),
    text("Infinity", 400, '{"components": ["a"], "guidance_scale": Infinity}', "Infinity"),
    text("-Infinity", 400, '{"components": ["a"], "guidance_scale": -Infinity}', "-Infinity"),
    text("a number beyond all", 400, '{"components": ["a"], "guidance_scale": 1e999}', "too large"),
    text("5000 digits", 400, '{"components": ["a"], "seed": ' + "9" * 5000 + "}", "digits"),
    text("a key twice", 400, '{"components": ["a"], "steps": 1, "steps": 2}', '"steps" twice'),
    text("a key twice inside", 400, '{"components": [{"prompt": "a", "prompt": "b"}]}', '"prompt" twice'),
    text("a key twice, once in escapes", 400, '{"components": ["a"], "seed": 1, "s\\u0065ed": 2}', '"seed" twice'),
    text("Latin-1", 400, '{"components": ["\xe9"]}'.encode("latin-1"), "UTF-8"),
    text("UTF-16", 400, '{"components": ["a"]}'.encode("utf-16"), "UTF-8"),
    text("half a surrogate", 422, '{"components": ["\\ud800"]}'),
    text("a bare control character", 400, '{"components": ["\x00"]}', "not JSON"),
    text("strings side by side", 400, '""' * 100_000, "side by side"),
    text("brackets closed only", 400, "]" * 100_000, "never opened"),
    text("blanks", 400, " " * 100_000, "not JSON"),
    text("a long key", 400, json.dumps({"x" * 100_000: 1}), "512 characters"),
    text("a long key in a component", 400, json.dumps({"components": [{"x" * 1000: 1}]}), "512 characters"),
]
TOO_LARGE = [
    text("lists in a list", 413, "[" + "[]," * 100_000 + "[]]", "10000 keys and values (max_json_items)"),
    text("objects in a list", 413, "[" + "{}," * 100_000 + "{}]", "max_json_items"),
    text("100,000 fields", 413, json.dumps({f"field{i}": i for i in range(100_000)}), "max_json_items"),
    text("4000 unknown fields", 422, json.dumps({f"field{i}": i for i in range(4000)}), "and 3981 more"),
    text("4000 wrong components", 422, json.dumps({"components": [7] * 4000})),
    text("nested lists", 422, "[" * 50_000, "32 deep (max_json_depth)"),
    text("nested objects", 422, '{"a":' * 20_000 + "1" + "}" * 20_000, "max_json_depth"),
    text("nested as deep as is allowed", 422, '{"a":' * 31 + "[]" + "}" * 31),
    text("3 MB", 413, json.dumps({"components": ["a"], "image": "x" * (3 << 20)}), "2097152 bytes"),
    text("3 MB of blanks", 413, " " * (3 << 20), "max_body_bytes"),
    text("3 MB of text/plain", 413, "x" * (3 << 20), "max_body_bytes", **{"Content-Type": "text/plain"}),
    Case("3 MB in chunks", 413, OR, "max_body_bytes",
         sent={"content": (b" " * 65536 for _ in range(48)), "headers": JSON}),
]  # fmt: skip
KINDS = [
    text("gzip", 415, zlib.compress(b'{"components": ["a"]}'), "Content-Encoding", **{"Content-Encoding": "gzip"}),
    text("text/plain", 415, '{"components": ["a"]}', "application/json", **{"Content-Type": "text/plain"}),
    text("a form", 415, "components=a", "json", **{"Content-Type": "application/x-www-form-urlencoded"}),
    Case("no content type", 415, OR, "application/json", sent={"content": b'{"components": ["a"]}'}),
    text("an Accept that is none", 406, '{"components": ["a"]}', "there are", Accept="cat/*;q=meow"),
    text("an Accept of nothing", 406, '{"components": ["a"]}', Accept="*/*;q=0"),
    text("a long client", 422, '{"components": ["a"]}', "200", **{"X-Client-Id": "x" * 300}),
    text("a long key of idempotency", 422, '{"components": ["a"]}', "255", **{"Idempotency-Key": "x" * 300}),
    text("an empty key of idempotency", 422, '{"components": ["a"]}', "at least 1", **{"Idempotency-Key": ""}),
]
FIELDS = [
    fields("a field of JavaScript", 422, "there is no field `__proto__`", __proto__={"steps": 1}),
    fields("true steps", 422, "#/steps", steps=True),
    fields("steps in a string", 422, "#/steps", steps="3"),
    fields("2**63 steps", 422, "#/steps", steps=2**63),
    fields("4000 digits of steps", 422, "#/steps", steps=10**4000),
    fields("-0.5 steps", 422, "#/steps", steps=-0.5),
    fields("a seed beyond 2**53", 422, "#/seed", seed=2**53),
    fields("a list of kernels", 422, "#/kernel", kernel=["posterior"]),
    fields("an endless kernel", 422, "#/kernel", kernel="x" * 100_000),
    fields("an object for a prompt", 422, "#/components/0/prompt", components=[{"prompt": {}}]),
    fields("no components", 422, "#/components", components=[]),
    fields("components as one string", 422, "#/components", components="a"),
    fields("an endless prompt", 422, "at most 4000", components=["x" * 100_000]),
    fields("an endless model", 422, "at most 200", components=[{"prompt": "a", "model": "x" * 100_000}]),
    fields("a model that looks like a file", 404, components=[{"prompt": "a", "model": "../../etc/passwd"}]),
    fields("100 LoRAs", 422, "at most 8", components=[{"prompt": "a", "lora": {f"l{i}": 1 for i in range(100)}}]),
    fields("a LoRA of 1e300", 422, "less than or equal to 10", components=[{"prompt": "a", "lora": {"x": 1e300}}]),
    fields("too many pixels", 422, "max_pixels", width=4096, height=4096),
    fields("too many images", 422, "max_pixels", num_images=64, candidates=16),
    fields(
        "too much work", 422, "max_job_work", num_images=64, steps=1000, components=[f"thing {i}" for i in range(16)]
    ),
    fields("too long a time", 422, "max_timeout_s", timeout_s=80_000),
]
EXPRESSIONS = [
    fields("200,001 characters", 422, "at most 200000", TEXT, expression="a" * 200_001),
    fields("100,000 brackets", 422, "column", TEXT, expression="(" * 100_000),
    fields("40,000 NOTs", 422, "column", TEXT, expression="NOT " * 40_000 + "a"),
    fields("17 prompts", 422, "at most 16", TEXT, expression=" OR ".join("abcdefghijklmnopq")),
    fields("an open quotation", 422, "column", TEXT, expression='"a cat'),
    fields("a number beyond all in a text", 422, "", TEXT, expression="a:1e999 OR b"),
    fields("a text of blanks", 422, "", TEXT, expression=" \t\n "),
    fields("operators alone", 422, "column", TEXT, expression="AND OR NOT"),
    fields("an unknown model in a text", 404, "", TEXT, expression='"a"@"../x"'),
    fields("two operators in a node", 422, "exactly one", TEXT, expression={"and": ["a"], "or": ["b"]}),
    fields("an operator of an object", 422, "", TEXT, expression={"and": {"or": {}}}),
    fields("a count of none", 422, "count", TEXT, expression={"at_least": ["a"], "count": 0}),
    fields("a tree 9 deep", 422, "at most 8 deep", TEXT,
           expression=json.loads('{"not":' * 9 + '"a"' + "}" * 9)),
    fields("a tree of 1000 prompts", 422, "at most 16", TEXT, expression={"or": ["a"] * 1000}),
]  # fmt: skip
PATHS = [
    get("a path that is none", 404, "/v1/nothing"),
    get("a job that is none", 404, "/v1/jobs/none"),
    get("a job by a path", 404, "/v1/jobs/..%2f..%2fetc%2fpasswd"),
    get("a job of 65 characters", 422, "/v1/jobs/" + "x" * 65),
    get("events of no job", 404, "/v1/jobs/none/events", **{"Last-Event-ID": "9" * 20}),
    get("an event id of 21 digits", 422, "/v1/jobs/none/events", **{"Last-Event-ID": "9" * 21}),
    get("an image before the first", 422, "/v1/jobs/none/images/-1"),
    get("an image far behind the last", 404, "/v1/jobs/none/images/" + "9" * 40),
    get("an image's unknown format", 422, "/v1/jobs/none/images/0?format=tiff", "'png', 'jpeg' or 'webp'"),
    get("a list of none", 422, "/v1/jobs?limit=0"),
    get("a list of NaN", 422, "/v1/jobs?limit=NaN"),
    get("a model of a NUL", 404, "/v1/models/%00"),
    get("a model of 1000 characters", 422, "/v1/models/" + "x" * 1000),
    get("a file above the page", 404, "/web/%2e%2e/%2e%2e/settings.py"),
    get("a file above the page, otherwise", 404, "/web/..%2f..%2fsettings.py"),
    get("a folder of the page", 404, "/web/js"),
    get("a file of a NUL", 404, "/web/%00"),
    get("PUT", 405, OR, method="PUT"),
    get("GET of what is posted", 405, OR),
    get("a method that is none", 405, OR, method="MEOW"),
    get("TRACE", 405, "/healthz", method="TRACE"),
    get("POST of a file", 405, "/web/style.css", method="POST"),
]
PICTURES = [
    fields("an address", 422, "URLs are not fetched", image="http://127.0.0.1/cat.png"),
    fields("a file's address", 422, "URLs are not fetched", image="file:///etc/passwd"),
    fields("no base64", 422, "not base64", image="*" * 1000),
    fields("an empty picture", 422, "image", image=""),
    fields("text in base64", 422, "must be one of PNG", image=in_base64(b"a cat" * 100)),
    fields("SVG", 422, "must be one of PNG", image=in_base64(b"<svg xmlns='http://www.w3.org/2000/svg'/>")),
    fields("half a picture", 422, "broken or cut off", image=in_base64(PNG[: len(PNG) // 2])),
    fields("a picture that ends in its header", 422, "image", image=in_base64(PNG[:20])),
    fields("a picture of 2**31 pixels a side", 413, "image", image=in_base64(png(2**31 - 1, 2**31 - 1))),
    fields("a picture of 100,000 pixels a side", 413, "max_image_pixels", image=in_base64(png(100_000, 100_000))),
    fields("a picture of 400 × 400", 413, "400×400", image=encoded(Image.new("RGB", (400, 400)))),
    fields("a picture without pixels", 422, "image", image=in_base64(png(0, 0))),
    fields("a PNG with 100 MB of text", 422, "image", image=in_base64(text_bomb())),
    fields("a mask alone", 422, "needs an image", mask=PICTURE),
    fields("a mask of another size", 422, "both must have the same size", image=PICTURE, mask=encoded(half(8, 16))),
    fields("a transparent mask", 422, "no dark pixel", image=PICTURE, mask=encoded(CLEAR)),
    fields("a mask that means its transparency", 422, "white where", image=PICTURE, mask=encoded(WHITE_AND_CLEAR)),
    fields("a density of no picture", 422, "#/image", DENSITY, components=["a"]),
    fields("a density of a bomb", 413, "max_image_pixels", DENSITY, components=["a"], image=in_base64(png(9999, 9999))),
]  # fmt: skip
OPENAI = [
    text("OpenAI: NaN", 400, '{"prompt": "a", "n": NaN}', "NaN", GENERATE),
    text("OpenAI: a key twice", 400, '{"prompt": "a", "n": 1, "n": 2}', '"n" twice', GENERATE),
    text("OpenAI: nested", 422, '{"prompt":' * 1000, "max_json_depth", GENERATE),
    text("OpenAI: 100,000 lists", 413, '{"prompt": [' + "[]," * 100_000 + "]}", "max_json_items", GENERATE),
    text("OpenAI: 3 MB", 413, json.dumps({"prompt": "x" * (3 << 20)}), "max_body_bytes", GENERATE),
    text("OpenAI: 4000 fields", 422, json.dumps({f"field{i}": i for i in range(4000)}), "more", GENERATE),
    fields("OpenAI: no picture", 422, "n: ", GENERATE, prompt="a", n=0),
    fields("OpenAI: 11 pictures", 422, "n: ", GENERATE, prompt="a", n=11),
    fields("OpenAI: a size of nothing", 422, "size", GENERATE, prompt="a", size="0x0"),
    fields("OpenAI: a size in words", 422, "size", GENERATE, prompt="a", size="large" * 1000),
    fields("OpenAI: an endless size", 422, "size", GENERATE, prompt="a", size="999999x999999"),
    fields("OpenAI: an unknown model", 404, "model", GENERATE, prompt="a", model="dall-e-3"),
    fields("OpenAI: superdiff as a list", 422, "superdiff", GENERATE, prompt="a", superdiff=[]),
    fields("OpenAI: a field in the wrong place", 422, "called n here", GENERATE, prompt="a",
           superdiff={"num_images": 2}),
    text("OpenAI: a form where JSON belongs", 415, "prompt=a", "json", GENERATE,
         **{"Content-Type": "application/x-www-form-urlencoded"}),
    text("OpenAI: JSON where a form belongs", 415, '{"prompt": "a"}', "multipart/form-data", EDIT),
    multipart("OpenAI: a form without a boundary", 400, b"", "boundary", "multipart/form-data"),
    multipart("OpenAI: a form without parts", 422, b"\r\n" * 1000),
    multipart("OpenAI: a form that is none", 400, b"a cat\r\n" * 1000),
    multipart("OpenAI: a form of a slow encoding", 415, b"--b--", "UTF-8",
              "multipart/form-data; boundary=b; charset=punycode"),
    multipart("OpenAI: a long header in a form", 400, b"--b\r\nX-" + b"x" * 100_000 + b": 1\r\n\r\n1\r\n--b--\r\n"),
    multipart("OpenAI: a part without a name", 400, b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--\r\n",
              "name"),
    form("OpenAI: no image", 422, "image", image=b"", files=[("other", PNG)]),
    form("OpenAI: an image as text", 422, "image", image=b"", fields={"image": "x", "mask": "y"},
         files=[("other", PNG)]),
    form("OpenAI: an image that is none", 422, "image", image=b"GIF89a"),
    form("OpenAI: a bomb", 413, "max_image_pixels", image=png(50_000, 50_000)),
    form("OpenAI: a field without a name", 422, "there is no field ``", fields={"": "1"}),
    form("OpenAI: 9 files", 400, "files", files=[("image", PNG)] * 9),
    form("OpenAI: 300 fields", 400, "fields", fields={f"superdiff[x{i}]": "1" for i in range(300)}),
    form("OpenAI: a part of 1 MB", 400, "Part", fields={"prompt": "x" * (1 << 20)}),
    form("OpenAI: an opaque mask", 422, "no transparent pixels", mask=file_of(half(16, 16))),
    form("OpenAI: a mask of another size", 422, "the same size", mask=file_of(Image.new("RGBA", (8, 8)))),
    form("OpenAI: superdiff of 100,000 lists", 422, "max_json_items",
         fields={"superdiff": "[" + "[]," * 100_000 + "[]]"}),
    form("OpenAI: superdiff with a key twice", 422, "twice", fields={"superdiff": '{"seed": 1, "seed": 2}'}),
    form("OpenAI: superdiff of 40 keys", 422, "nested field", fields={"superdiff" + "[a]" * 40: "1"}),
]  # fmt: skip
SDAPI = [
    text("WebUI: NaN", 400, '{"prompt": "a", "cfg_scale": NaN}', "NaN", TXT2IMG),
    text("WebUI: a key twice", 400, '{"prompt": "a", "prompt": "b"}', "twice", TXT2IMG),
    text("WebUI: nested", 422, '{"prompt":' * 1000, "max_json_depth", TXT2IMG),
    text("WebUI: 100,000 lists", 413, '{"junk": [' + "[]," * 100_000 + "]}", "max_json_items", TXT2IMG),
    text("WebUI: 3 MB", 413, json.dumps({"prompt": "x" * (3 << 20)}), "max_body_bytes", TXT2IMG),
    fields("WebUI: steps in words", 422, "steps", TXT2IMG, steps="many"),
    fields("WebUI: 4096 pictures", 422, "batch_size", TXT2IMG, batch_size=64, n_iter=64),
    fields("WebUI: an unknown checkpoint", 404, "sd_model_checkpoint", TXT2IMG,
           override_settings={"sd_model_checkpoint": "../x.safetensors"}),
    fields("WebUI: a script's unknown argument", 422, "superdiff", TXT2IMG,
           alwayson_scripts={"superdiff": {"args": [{"sharpnes": 1}]}}),
    fields("WebUI: 100 arguments", 422, "superdiff", TXT2IMG, alwayson_scripts={"superdiff": {"args": [1] * 100}}),
    fields("WebUI: no picture", 422, "init_images", IMG2IMG, init_images=[]),
    fields("WebUI: two pictures", 422, "init_images", IMG2IMG, init_images=[PICTURE] * 2),
    fields("WebUI: a bomb", 413, "init_images", IMG2IMG, init_images=[in_base64(png(50_000, 50_000))]),
    fields("WebUI: an address", 422, "URLs", IMG2IMG, init_images=["http://127.0.0.1/"]),
    fields("WebUI: a mask of other proportions", 422, "proportions", IMG2IMG, init_images=[PICTURE],
           mask=encoded(half(8, 16))),
    fields("WebUI: a text that is no PNG", 422, "image", PNG_INFO, image="bm8="),
    fields("WebUI: a PNG bomb", 413, "image", PNG_INFO, image=in_base64(png(50_000, 50_000))),
    fields("WebUI: a PNG with 100 MB of text", 422, "image", PNG_INFO, image=in_base64(text_bomb())),
    get("WebUI: a task of 300 characters", 422, "/sdapi/v1/progress?force_task_id=" + "x" * 300),
    get("WebUI: a path that is none", 404, "/sdapi/v1/nothing"),
    get("WebUI: DELETE", 405, TXT2IMG, method="DELETE"),
]  # fmt: skip
CASES = [*NOT_JSON, *TOO_LARGE, *KINDS, *FIELDS, *EXPRESSIONS, *PATHS, *PICTURES, *OPENAI, *SDAPI]
INSIDES = re.compile(r"Traceback|site-packages|\bFile \"|0x[0-9a-f]{6}|/service/|pydantic|object at")


@pytest.fixture(scope="module")
def client(models):
    with TestClient(create_app(SETTINGS, catalog=Catalog.of(models)), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_refused(client, case):
    answer = client.request(case.method, case.path, **case.sent)
    assert answer.status_code == case.status, answer.text[:2000]
    assert len(answer.content) <= MOST_BYTES
    assert not INSIDES.search(answer.text)
    problem = told_by(answer, case.path)
    assert case.told in str(answer.json()), problem
    assert client.get("/healthz").status_code == 200


def told_by(answer, path):
    """The reason, and that it has its dialect's form."""
    document = answer.json()
    if path.startswith("/v1/images"):
        assert set(document) == {"error"}
        assert {"message", "type", "param", "code"} <= set(document["error"])
        return document["error"]["message"]
    if path.startswith("/sdapi"):
        assert set(document) == {"error", "detail", "body", "errors"}
        return document["detail"]
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert document["status"] == answer.status_code
    assert len(document["errors"]) <= 20
    return document["detail"]


def test_there_are_many_cases_and_each_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES) >= 80
