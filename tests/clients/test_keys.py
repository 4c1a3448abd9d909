"""Every client against one service that wants API keys."""

import json
import os
import re
import subprocess
import sys

import httpx
import openai
import pytest
import webuiapi
from playwright.sync_api import expect

from integrations.client import Client, ServiceError
from tests.clients.test_page import browser  # noqa: F401
from tests.servers import start
from tests.service.keys import KeysIn, NewKey

BLOB = re.compile("^blob:")
HOW = {"superdiff": {"steps": 3, "seed": 7}}
BODY = {"expression": '"a red circle" AND "a blue star"', "steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return KeysIn(tmp_path_factory.mktemp("keys") / "keys.sqlite")


@pytest.fixture(scope="module")
def key(store):
    return NewKey(store, "me").text


@pytest.fixture(scope="module")
def server(tmp_path_factory, store, key):
    """Whoever has made a key is asked for one, on loopback too."""
    running = start(tmp_path_factory.mktemp("server") / "log", SUPERDIFF_DATABASE=store.url)
    yield running
    running.stop()


def client_of(server, key, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 60} | options)


def test_the_openai_client_sends_it_and_raises_its_own_errors(server, key, store):
    with client_of(server, key) as client:
        drawn = client.images.generate(prompt="a red circle", extra_body=HOW, response_format="url")
        assert next(model.id for model in client.models.list()) == "shapes"
    (image,) = drawn.data
    assert httpx.get(image.url).status_code == 401
    assert httpx.get(image.url, headers={"Authorization": f"Bearer {key}"}).content.startswith(b"\x89PNG")
    with client_of(server, "none") as client:
        for ask in (client.models.list, lambda: client.images.generate(prompt="a", extra_body=HOW)):
            with pytest.raises(openai.AuthenticationError):
                ask()
    watcher = NewKey(store, "watcher", "read-metrics")
    with client_of(server, watcher.text) as client, pytest.raises(openai.PermissionDeniedError, match="'generate'"):
        client.images.generate(prompt="a", extra_body=HOW)


@pytest.mark.parametrize("limit", ["requests_per_minute", "pixel_steps_per_day"])
def test_the_openai_client_is_told_of_its_limits(server, store, limit):
    # A prompt with guidance asks two questions at each of 3 steps of 64 × 64 pixels.
    key = NewKey(store, limit, **{limit: 1 if limit == "requests_per_minute" else 2 * 3 * 64 * 64})
    with client_of(server, key.text) as client:
        client.images.generate(prompt="a red circle", extra_body=HOW)
        with pytest.raises(openai.RateLimitError) as refused:
            client.images.generate(prompt="a red circle", extra_body=HOW)
    assert refused.value.code == "rate_limit_exceeded"
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 86400
    assert headers["ratelimit"].startswith('"requests";r=0;t=' if "requests" in limit else '"pixel-steps";r=0;t=')


def test_webuiapi_sends_it_as_a_password(server, key):
    api = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", username="me", password=key)
    result = api.txt2img(prompt="a red circle", width=64, height=64, steps=3, seed=7)
    assert result.image.size == (64, 64)
    assert api.get_progress()["state"]["job_count"] == 0
    stranger = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", username="me", password="none")  # noqa: S106
    with pytest.raises(RuntimeError) as refused:
        stranger.txt2img(prompt="a red circle", width=64, height=64, steps=3)
    status, document = refused.value.args
    assert status == 401
    assert "there is no such API key" in json.loads(document)["detail"]


def test_the_editors_client_sends_it(server, key):
    assert len(Client(server.url, key).draw(BODY).pictures) == 1
    with pytest.raises(ServiceError, match="an API key is needed"):
        Client(server.url).models()
    with pytest.raises(ServiceError, match="there is no such API key"):
        Client(server.url, "none").models()
    with pytest.raises(ServiceError, match="copy it again"):
        Client(server.url, "sd_a b")


def test_the_command_line_sends_it(server, key, tmp_path):
    def run(**environment):
        command = [sys.executable, "-m", "service.cli", "jobs", "list", "--url", server.url, "--json"]
        return subprocess.run(
            command, capture_output=True, text=True, env=os.environ | environment, timeout=60, check=False
        )

    assert json.loads(run(SUPERDIFF_KEY=key).stdout)["data"]
    refused = run()
    assert refused.returncode == 4
    assert "an API key is needed" in refused.stderr


@pytest.mark.timeout(120)
def test_the_page_asks_for_it(browser, server, key):  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#key")).to_be_focused()
    page.fill("#key", "none")
    page.press("#key", "Enter")
    expect(page.locator("#key-note")).to_contain_text("there is no such API key")
    page.fill("#key", key)
    page.press("#key", "Enter")
    expect(page.locator("#model-0 option")).to_have_count(3)
    expect(page.locator("#key-form")).to_be_hidden()
    page.fill("#prompt-0", "a red circle")
    page.fill("#prompt-1", "a blue star")
    page.click("#compose")
    picture = page.locator("#frame:not(.preview) #picture")
    expect(picture).to_have_attribute("src", BLOB)
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    thumb = page.locator("#gallery img").first
    expect(thumb).to_have_attribute("src", BLOB)
    expect(page.locator("#download")).to_have_attribute("href", BLOB)
    # Kept for this tab alone: it survives a reload, and another tab is asked again.
    page.reload()
    expect(page.locator("#model-0 option")).to_have_count(3)
    expect(page.locator("#key-form")).to_be_hidden()
    assert page.evaluate("Object.values(localStorage).join()").find(key) == -1
    other = context.new_page()
    other.goto(server.url)
    expect(other.locator("#key-form")).to_be_visible()
    context.close()
