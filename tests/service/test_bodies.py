"""What large bodies hold of the memory, and for how long."""

import asyncio
import base64
import contextlib
import errno
import json
import tempfile
import threading
import time
import tracemalloc

import httpx
import numpy as np
import pytest
from PIL import Image

from pipelines.catalog import Catalog
from service import orders
from service.app import create_app
from service.engine.engine import Engine
from service.room import Room
from service.settings import Settings
from service.sources import flat
from tests.service.held import Held
from tests.service.test_images import encoded, noise
from tests.waits import LONG_S, soon

OR = "/v1/superpose/or"
IMG2IMG = "/sdapi/v1/img2img"
EDITS = "/v1/images/edits"
PICTURE = encoded(noise(900, 900))  # 3.2 MB
SIZE = len(PICTURE)
CLIENTS = 6
WITHIN_S = 60


def in_chunks(body):
    async def chunks():
        for at in range(0, len(body), 1 << 16):
            yield body[at : at + (1 << 16)]
            await asyncio.sleep(0)

    return chunks()


NATIVE = json.dumps({"components": ["a"], "steps": 4, "width": 16, "height": 16, "image": PICTURE}).encode()
WEBUI = json.dumps({"prompt": "a", "steps": 4, "width": 16, "height": 16, "init_images": [PICTURE]}).encode()


@contextlib.asynccontextmanager
async def serving(app):
    """The application, started, and a client of it."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=WITHIN_S) as client:
            yield client


def posting(client, path, body, **headers):
    sent = {"Content-Type": "application/json", **headers}
    return asyncio.create_task(client.post(path, content=in_chunks(body), headers=sent))


async def jobs_of(services, count):
    """Wait until so many jobs are taken in, and their requests wait for them."""
    async with asyncio.timeout(LONG_S):
        while services.keeper.unfinished("address:127.0.0.1") < count:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


@pytest.fixture
def held(models):
    """An application whose engine does not go on, and the engine's executor."""
    catalog = Catalog.of(models)
    executor = Held(catalog)
    app = create_app(Settings(database="memory:"), catalog=catalog, engine=Engine(executor))
    app.state.services.reading = Room(SIZE)
    yield app, executor
    executor.go.set()


@pytest.mark.parametrize(("path", "body"), [(OR, NATIVE), (IMG2IMG, WEBUI)])
def test_a_few_bodies_are_read_at_once_and_none_is_held_while_its_job_waits(held, path, body):
    app, executor = held
    services = app.state.services

    async def scene():
        async with serving(app) as client:
            tracemalloc.start()
            try:
                asked = [posting(client, path, body) for _ in range(CLIENTS)]
                await jobs_of(services, CLIENTS)
                left, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            taken = services.reading.taken
            executor.go.set()
            answers = await asyncio.gather(*asked)
        return left, peak, taken, {answer.status_code for answer in answers}

    left, peak, taken, statuses = soon(scene(), WITHIN_S)
    assert statuses == {200}
    assert taken == 0
    # A body, its text and its picture's file, and the parts of the others that go to disk: not one of each request.
    assert peak < CLIENTS * SIZE
    assert left < SIZE


def test_a_form_s_files_wait_for_their_turn_too(held):
    app, executor = held
    file = {"image": ("a.png", base64.b64decode(PICTURE), "image/png")}

    async def scene():
        async with serving(app) as client:
            async with app.state.services.reading.hold(SIZE):
                asked = asyncio.create_task(client.post(EDITS, data={"prompt": "a", "size": "16x16"}, files=file))
                done, _ = await asyncio.wait([asked], timeout=0.5)
            executor.go.set()
            return bool(done), (await asked).status_code

    assert soon(scene(), WITHIN_S) == (False, 200)


def test_what_is_forgotten_does_not_count_any_more(models):
    catalog = Catalog.of(models)
    executor = Held(catalog)
    settings = Settings(database="memory:", max_bodies_bytes=len(NATIVE) * 3 // 2)
    app = create_app(settings, catalog=catalog, engine=Engine(executor))

    async def scene():
        async with serving(app) as client:
            first = posting(client, OR, NATIVE)
            await jobs_of(app.state.services, 1)
            second = posting(client, OR, NATIVE)
            await asyncio.sleep(0)
            executor.go.set()
            return [answer.status_code for answer in await asyncio.gather(first, second)]

    assert soon(scene(), WITHIN_S) == [200, 200]


def test_pictures_are_decoded_one_at_a_time(models, monkeypatch):
    """Small files may hold large pictures."""
    decode, lock, now, most = orders.decode_picture, threading.Lock(), 0, 0

    def counted(*given):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        picture = decode(*given)
        with lock:
            now -= 1
        return picture

    monkeypatch.setattr(orders, "decode_picture", counted)
    body = json.dumps({"components": ["a"], "steps": 1, "image": encoded(noise(16, 16))}).encode()
    app = create_app(Settings(database="memory:"), catalog=Catalog.of(models))

    async def scene():
        async with serving(app) as client:
            answers = await asyncio.gather(*(posting(client, OR, body) for _ in range(CLIENTS)))
        return {answer.status_code for answer in answers}

    assert soon(scene(), WITHIN_S) == {200}
    assert most == 1


def test_a_full_disk_refuses_a_large_body_and_no_small_one(models, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    app = create_app(Settings(database="memory:"), catalog=Catalog.of(models))

    async def scene():
        async with serving(app) as client:
            large = await posting(client, OR, NATIVE)
            small = await posting(client, OR, b'{"components": ["a"], "steps": 1}')
        return large, small

    large, small = soon(scene(), WITHIN_S)
    assert (large.status_code, small.status_code) == (507, 200)
    assert "disk is full" in large.json()["detail"]


@pytest.mark.parametrize("rows", [1, 64, 65, 200])
def test_transparency_becomes_white_as_in_one_piece(rows):
    pixels = np.random.default_rng(rows).integers(0, 256, (rows, 7, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    assert np.array_equal(np.asarray(flat(image)), np.asarray(Image.alpha_composite(ground, image).convert("RGB")))
