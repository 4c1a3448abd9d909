"""JSON is counted before it is parsed, and parsed in one way only."""

import asyncio
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog import Catalog
from service.app import create_app
from service.settings import Settings
from service.store.keys import NoKeys
from service.strict_json import Bounds, NestedTooDeepError, NotJsonError, Scan, TooManyItemsError, parse, read
from tests.waits import soon

WIDE = Bounds(depth=64, items=10_000)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def open_to_anyone(models, **bounds):
    """An application that is not started but knows that no key is asked for."""
    settings = Settings(**bounds)
    made = create_app(settings, catalog=Catalog.of(models))
    asyncio.run(made.state.services.keyring.open(NoKeys(), settings))
    return made


@pytest.fixture(scope="module")
def app(models):
    return open_to_anyone(models)


def scan(text, bounds=WIDE, cuts=()):
    """Count a text that comes in chunks, cut at some places."""
    counted = Scan(bounds)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        counted.feed(text[start:end])


def items(value):
    """Commas, colons and opening brackets of a value."""
    if isinstance(value, dict):
        return 1 + len(value) + max(0, len(value) - 1) + sum(map(items, value.values()))
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(items, value))
    return 0


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(value=VALUES, cuts=st.lists(st.integers(0, 1 << 16), max_size=6), ascii_only=st.booleans())
@settings(max_examples=150)
def test_the_count_is_exact_wherever_the_text_is_cut(value, cuts, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    deep, many = depth(value), items(value)
    scan(text, Bounds(deep, many), cuts)
    if many:
        with pytest.raises(TooManyItemsError):
            scan(text, Bounds(deep, many - 1), cuts)
        with pytest.raises(NestedTooDeepError):
            scan(text, Bounds(deep - 1, many), cuts)


@given(text=st.text(st.sampled_from('[]{},:"\\ a1'), max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=300)
def test_what_is_counted_does_not_depend_on_the_cuts_and_no_text_slips_through(text, cuts):
    """Whatever json takes, the scan takes; and the scan says the same of a text in pieces."""

    def told(places):
        try:
            scan(text.encode(), WIDE, places)
        except NotJsonError as error:
            return str(error)
        return None

    assert told(cuts) == told(())
    try:
        json.loads(text)
    except ValueError:
        return
    assert told(()) is None


@given(value=VALUES)
@settings(max_examples=100)
def test_what_json_writes_is_read_back(value):
    assert read(json.dumps(value), WIDE) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "b": 2, "a": 3}', '"a" twice'),
        ('[{"x": {"a": 1, "\\u0061": 3}}]', '"a" twice'),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e400]", "too large"),
        ("[-1e400]", "too large"),
        ("[" + "1" * 5000 + "]", "too many digits"),
        ('{"a": 1,}', "line 1, column 9"),
        ("", "line 1, column 1"),
        ('{"' + "k" * 513 + '": 1}', "512 characters"),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(text, told):
    with pytest.raises(NotJsonError, match=told):
        parse(text)
    with pytest.raises(NotJsonError, match=told):
        parse(text.encode())


def test_a_byte_order_mark_is_no_fault_and_another_encoding_is():
    assert parse(b"\xef\xbb\xbf[1]") == [1]
    with pytest.raises(NotJsonError, match="UTF-8"):
        parse("[1]".encode("utf-16"))
    assert parse("[1, 2.5, 1e3, -0]") == [1, 2.5, 1000.0, 0]


async def status(app, chunks, path="/v1/superpose"):
    """POST the chunks of a body, an asynchronous iterator → the status."""
    sent = []

    async def receive():
        chunk = await anext(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return sent[0]["status"]


@pytest.mark.parametrize("path", ["/v1/superpose", "/v1/density", "/v1/images/generations", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize(
    ("chunk", "refused", "after"), [(b"[],[]," * 1000, 413, 3), (b"[[[" * 3, 422, 4), (b'"x"' * 1000, 400, 1)]
)
def test_the_first_excess_ends_the_reading(app, path, chunk, refused, after):
    """What would follow is never asked for, were it 30 MB."""
    taken = 0

    async def endless():
        nonlocal taken
        while taken < 100:
            taken += 1
            yield chunk

    assert soon(status(app, endless(), path)) == refused
    assert taken == after


def test_a_large_chunk_leaves_the_loop_to_others(app):
    """A server may hand over a whole body at once: it is scanned in parts, between which others have their turn."""
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def whole():
        yield b'{"a": "' + b"x" * (8 << 20) + b'"}'

    async def scene():
        other = asyncio.create_task(others())
        try:
            return await status(app, whole())
        finally:
            other.cancel()

    assert soon(scene()) == 422
    assert turns >= 8 << 20 >> 18


def test_the_bodies_of_all_requests_together_are_bounded(models):
    """A body counts from when it comes to when its request is answered."""
    app = open_to_anyone(models, max_bodies_bytes=4096, max_body_bytes=4096)

    async def scene():
        over = asyncio.Event()

        async def slow():
            yield b'{"' + b"x" * 3000
            await over.wait()

        async def quick():
            yield b'{"' + b"x" * 3000

        first = asyncio.create_task(status(app, slow()))
        await asyncio.sleep(0.05)
        second = await status(app, quick())
        over.set()
        return [await first, second, await status(app, quick())]

    assert soon(scene()) == [400, 503, 400]
