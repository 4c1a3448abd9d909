"""The trajectory as a figure and a table, by `format` and by Accept; over small real models."""

import io
import threading
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.catalog import Catalog
from service.api.accept import liked_best
from service.app import create_app
from service.engine.job import Point
from service.plots import draw_trajectory
from service.settings import Settings
from tests.service.test_api import refused

SVG = "{http://www.w3.org/2000/svg}"
BODY = {"expression": '"a red circle" AND "a blue star"', "steps": 4, "seed": 5, "include_trajectory": True}


@pytest.fixture(scope="module")
def client(models):
    with TestClient(create_app(Settings(), catalog=Catalog.of(models))) as client:
        yield client


def trajectory_of(client, **given):
    return f"/v1/jobs/{client.post('/v1/superpose', json=BODY | given).json()['id']}/trajectory"


def texts(svg):
    """What is written in a figure."""
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314  our own


@pytest.mark.parametrize(
    ("given", "media_type"),
    [
        ({"params": {"format": "json"}}, "application/json"),
        ({"params": {"format": "csv"}}, "text/csv; charset=utf-8"),
        ({"params": {"format": "png"}}, "image/png"),
        ({"params": {"format": "svg"}}, "image/svg+xml"),
        ({"headers": {"Accept": "text/csv"}}, "text/csv; charset=utf-8"),
        ({"headers": {"Accept": "image/svg+xml"}}, "image/svg+xml"),
        ({"headers": {"Accept": "image/*"}}, "image/png"),
        ({"headers": {"Accept": "image/png"}, "params": {"format": "json"}}, "application/json"),
    ],
)
def test_a_trajectory_comes_as_it_is_asked_for(client, given, media_type):
    answer = client.get(trajectory_of(client), **given)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == media_type


def test_a_png_is_a_picture_of_a_page_s_width(client):
    picture = Image.open(io.BytesIO(client.get(trajectory_of(client), params={"format": "png"}).content))
    assert picture.format == "PNG"
    assert picture.width == 960
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 16


def test_the_figure_names_components_axes_and_noise_levels(client):
    path = trajectory_of(client, num_images=2)
    svg = client.get(path, params={"format": "svg"}).text
    told = texts(svg)
    assert {"a red circle", "a blue star", "κ", "step", "noise level σ reached"} <= set(told)
    assert any(text.startswith("gap") for text in told)
    assert not any("sample size" in text for text in told)
    first = client.get(path).json()[0]
    assert f"{first['sigma']:.3g}" in told


def test_with_particles_there_is_their_effective_sample_size(client):
    told = texts(client.get(trajectory_of(client, particles=3), params={"format": "svg"}).text)
    assert any("sample size" in text for text in told)


def test_the_same_trajectory_is_the_same_bytes_and_tells_no_date(client):
    path = trajectory_of(client)
    for form in ("svg", "png"):
        first, again = (client.get(path, params={"format": form}).content for _ in range(2))
        assert first == again
    assert b"<dc:date" not in client.get(path, params={"format": "svg"}).content


def test_figures_asked_for_at_once_are_all_drawn(client):
    path, found = trajectory_of(client), []
    threads = [
        threading.Thread(target=lambda: found.append(client.get(path, params={"format": "svg"}).content))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1


def test_any_prompt_can_be_written_beside_the_figure(client):
    names = ["_hidden $x^2$", "<b>&\x00", "猫🦊", "long " * 50]
    rng = np.random.default_rng(0)
    points = [Point(i + 1, 1.0 / (i + 1), rng.random((3, 4)), rng.random((3, 4))) for i in range(3)]
    told = texts(draw_trajectory(points, names, "svg"))
    assert {"_hidden $x^2$", "<b>&", "猫🦊"} <= set(told)
    assert any(text.startswith("long long") and text.endswith("…") and len(text) == 40 for text in told)


def test_what_was_not_estimated_is_said_so(client):
    told = texts(client.get(trajectory_of(client, steps=1), params={"format": "svg"}).text)
    assert "not estimated: no step added noise" in told
    nothing = texts(draw_trajectory([], ["a", "b"], "svg"))
    assert "no step was taken" in nothing


def test_a_trajectory_that_was_not_kept_or_a_format_that_is_none_is_refused(client):
    refused(client.get(trajectory_of(client, include_trajectory=False), params={"format": "png"}), 409)
    refused(client.get(trajectory_of(client), params={"format": "gif"}), 422)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, "application/json"),
        ("text/*", "text/csv"),
        ("text/html, text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("application/json;q=0, */*", "text/csv"),
        ("text/html", "application/json"),
    ],
)
def test_the_media_type_liked_best(accept, wanted):
    assert liked_best(accept, ["application/json", "text/csv", "image/png"]) == wanted
