"""Pictures that come in: image-to-image, inpainting and densities, over small real models."""

import base64
import contextlib
import io
import threading

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.catalog import Catalog
from pipelines.entry import Entry
from pipelines.errors import InvalidInputError
from pipelines.residency import MemoryPolicy
from service.api.explanations import explain
from service.app import create_app
from service.pictures import decode_picture
from service.settings import Settings
from service.sources import blend_of, prepare_source, read_mask, sampled_size
from tests.service.test_api import AND, OR, pictures, refused
from tests.waits import until

DENSITY = "/v1/density"
COMPONENTS = ["a red circle", {"prompt": "a blue star", "model": "two"}]


@pytest.fixture(scope="module")
def client(models):
    with TestClient(
        create_app(Settings(max_pixels=64 * 64, max_image_pixels=64 * 64), catalog=Catalog.of(models))
    ) as client:
        yield client


def noise(width, height, seed=0, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def encoded(image, image_format="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def half(width, height):
    """A mask that paints the right half."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = 255
    return Image.fromarray(mask)


def ask(path=AND, **given):
    return {"components": COMPONENTS, "steps": 4, "seed": 5} | given


@pytest.mark.parametrize("size", [(16, 16), (19, 17), (24, 10)])
@pytest.mark.parametrize("path", [AND, OR])
def test_outside_of_the_mask_every_pixel_is_the_picture_s_own(client, path, size):
    image, mask = noise(*size), half(*size)
    body = ask(image=encoded(image), mask=encoded(mask), mask_feather=2, num_images=2)
    for picture in pictures(client.post(path, json=body)):
        assert picture.shape == (size[1], size[0], 3)
        kept = np.asarray(mask) == 0
        assert np.array_equal(picture[kept], np.asarray(image)[kept])
        assert not np.array_equal(picture[~kept], np.asarray(image)[~kept])


def test_strength_zero_gives_the_picture_back_bit_by_bit(client):
    image = noise(19, 17)
    answer = client.post(AND, json=ask(image=encoded(image), strength=0))
    (picture,) = pictures(answer)
    assert np.array_equal(picture, np.asarray(image))
    (told,) = answer.json()["images"]
    assert set(told["log_density"].values()) == {None}
    assert answer.json()["timings"]["steps"] == 0


def test_strength_one_without_a_mask_is_text_to_image(client):
    (with_image,) = pictures(client.post(AND, json=ask(image=encoded(noise(16, 16)), strength=1)))
    (without,) = pictures(client.post(AND, json=ask()))
    assert np.abs(with_image - without).max() <= 1


def test_an_image_alone_is_kept_in_part(client):
    answer = client.post(AND, json=ask(image=encoded(noise(16, 16))))
    assert answer.json()["timings"]["steps"] == 3


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_answer_has_the_size_asked_for(client, fit):
    body = ask(image=encoded(noise(30, 11)), width=21, height=18, fit=fit, strength=0.5)
    (picture,) = pictures(client.post(OR, json=body))
    assert picture.shape == (18, 21, 3)


def test_a_model_of_one_size_takes_any_picture(client):
    body = {"components": [{"prompt": "", "model": "pixels"}], "guidance_scale": 1, "steps": 2}
    (picture,) = pictures(client.post(OR, json=body | {"image": encoded(noise(20, 30))}))
    assert picture.shape == (8, 8, 3)
    problem = refused(client.post(OR, json=body | {"image": encoded(noise(8, 8)), "width": 16}), 422)
    assert problem["errors"][0]["pointer"] == "#/width"


def test_previews_of_a_painting_job_come_too(client):
    body = ask(image=encoded(noise(16, 16)), mask=encoded(half(16, 16)), preview_every=2)
    told = client.post(AND, json=body, headers={"Accept": "text/event-stream"}).text
    assert "event: preview" in told
    assert "event: completed" in told


@pytest.mark.parametrize(
    ("given", "pointer", "told"),
    [
        ({"image": "http://example.com/a.png"}, "#/image", "URLs are not fetched"),
        ({"image": "no base64!"}, "#/image", "is not base64"),
        ({"image": base64.b64encode(b"text").decode()}, "#/image", "must be one of PNG"),
        ({"image": encoded(noise(32, 32))[:400]}, "#/image", "cannot be read"),
        ({"image": encoded(noise(8, 8)), "mask": "?"}, "#/mask", "is not base64"),
        ({"mask": encoded(half(16, 16))}, "#/mask", "a mask needs an image"),
        ({"strength": 0.5}, "#/strength", "needs an image to start from"),
        ({"strength": 1.5}, "#/strength", "less than or equal to 1"),
        ({"image": encoded(noise(60, 60)), "num_images": 2}, "#/num_images", "width × height × num_images is 7200"),
        ({"image": encoded(noise(8, 8)), "fit": "squeeze"}, "#/fit", "'crop', 'pad' or 'stretch'"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_by_its_field(client, given, pointer, told):
    problem = refused(client.post(AND, json=ask(**given)), 422)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert told in problem["errors"][0]["detail"]


@pytest.mark.parametrize("path", [AND, DENSITY])
def test_a_picture_of_too_many_pixels_is_413(client, path):
    body = {"components": COMPONENTS, "image": encoded(noise(65, 64))}
    (error,) = refused(client.post(path, json=body), 413)["errors"]
    assert error["pointer"] == "#/image"
    assert "65×64 pixels; this service reads 4096 (max_image_pixels)" in error["detail"]


def test_an_image_given_back_as_it_is_has_no_steps_to_tell_of(client):
    body = ask(image=encoded(noise(16, 16)), strength=0, include_trajectory=True)
    told = client.post(AND, json=body).json()
    assert told["trajectory"] == []
    (picture,) = told["images"]
    assert set(picture["weight"].values()) == set(picture["log_density"].values()) == {None}
    assert client.get(f"/v1/jobs/{told['id']}/trajectory").json() == []


def test_a_density_explains_a_picture(client):
    body = {"image": encoded(noise(16, 16)), "components": COMPONENTS, "steps": 6, "seed": 1, "draws": 3}
    answer = client.post(DENSITY, json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["components"] == list(told["explanations"]) == ["a red circle @one", "a blue star @two"]
    assert told["numbers"] == 4 * 8 * 8
    assert sum(e["posterior"] for e in told["explanations"].values()) == pytest.approx(1)
    assert all(e["standard_error"] > 0 for e in told["explanations"].values())
    assert client.post(DENSITY, json=body).json()["explanations"] == told["explanations"]
    single = client.post(DENSITY, json=body | {"draws": 1}).json()["explanations"]
    assert all(e["standard_error"] is None for e in single.values())


def test_prior_odds_shift_the_posterior_by_what_they_say():
    densities = np.array([[-10.0, -11.0], [-12.0, -13.0]])
    even, shifted = (explain(["a", "b"], densities, np.array([0.0, bias])) for bias in (0.0, 1.0))
    assert even["a"].posterior == pytest.approx(1 / (1 + np.exp(-1)))
    assert shifted["a"].posterior == pytest.approx(0.5)
    assert even["a"].log_density == -11
    assert even["a"].standard_error == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"image": "?"}, "#/image"),
        ({"draws": 0}, "#/draws"),
        ({"draws": 17}, "#/draws"),
        ({"guidance_scale": 2}, "#/guidance_scale"),
        ({"kernel": "deterministic"}, "#/kernel"),
        ({"steps": 1}, "#/steps"),
        ({"timeout_s": 80000}, "#/timeout_s"),
    ],
)
def test_a_density_that_makes_no_sense_is_refused(client, given, pointer):
    body = {"image": encoded(noise(16, 16)), "components": COMPONENTS, "steps": 2} | given
    problem = refused(client.post(DENSITY, json=body), 422)
    assert problem["errors"][0]["pointer"] == pointer


def test_deep_greys_keep_their_proportions():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for image_format in ("png", "tiff"):
        read = np.asarray(decode_picture(encoded(Image.fromarray(ramp), image_format), "mask", 100))
        assert np.abs(read.astype(int) - ramp / 257).max() < 1


def test_pictures_without_eight_bits_and_broken_exif_are_refused():
    floats = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(InvalidInputError, match="image cannot be read: its pixels are floating-point numbers"):
        decode_picture(encoded(floats, "tiff"), "image", 100)
    broken = Image.Exif()
    broken[0x0112] = 6
    data = base64.b64decode(encoded(noise(6, 4), "jpeg", exif=broken))
    at = data.index(b"Exif") + 6
    for cut in range(8, 24):
        mangled = data[: at + cut] + b"\xff" * 6 + data[at + cut + 6 :]
        with contextlib.suppress(InvalidInputError):
            decode_picture(base64.b64encode(mangled).decode(), "image", 100)


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000)])
def test_a_line_of_pixels_can_be_padded(size):
    source = prepare_source(Image.new("RGB", size), None, (16, 16), (16, 16), "pad", 0)
    assert source.pixels.shape == (16, 16, 3)


@pytest.mark.parametrize("feather", [1, 4, 64, 256])
def test_feathering_never_hides_all_that_is_painted(feather):
    """Thin lines, specks and grey areas stay visible, and what is far inside is seen at the mask's own value."""
    for inside in (np.s_[10:12, :], np.s_[14:18, 14:18], np.s_[:, 20:21]):
        for value in (255, 128, 1):
            mask = np.zeros((40, 40), np.uint8)
            mask[inside] = value
            blend = blend_of(mask, feather)
            assert ((blend > 0) == (mask > 0)).all()
            assert (blend <= mask).all()
    wide = np.zeros((8, 600), np.uint8)
    wide[:, 20:] = 200
    assert blend_of(wide, 256)[4, -1] == 200
    assert (np.diff(blend_of(wide, 256)[4].astype(int)) >= 0).all()


def test_pictures_are_read_as_people_send_them():
    image = noise(6, 4)
    for text in (encoded(image), f"data:image/png;base64,{encoded(image)}"):
        assert np.array_equal(np.asarray(decode_picture(text, "image", 100)), np.asarray(image))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode_picture(encoded(image, "jpeg", exif=turned), "image", 100).size == (4, 6)
    with pytest.raises(InvalidInputError, match="6×4 pixels; this service reads 23"):
        decode_picture(encoded(image), "image", 23)


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    source = prepare_source(clear, None, (4, 4), (4, 4), "crop", 0)
    assert (source.pixels == 255).all()


def test_the_picture_grows_to_what_the_models_can_draw():
    class Card:
        def __init__(self, multiple):
            self.multiple = multiple

    assert sampled_size((17, 8), [Card(8), Card(12)]) == (24, 24)
    assert sampled_size((17, 8), [Card(0)]) == (17, 8)
    image = noise(5, 3)
    source = prepare_source(image, half(5, 3), (5, 3), (8, 4), "crop", 0)
    assert source.pixels.shape == (4, 8, 3)
    assert np.array_equal(source.pixels[:3, :5], np.asarray(image))
    assert np.array_equal(source.pixels[3, 7], np.asarray(image)[2, 4])
    assert (source.width, source.height) == (5, 3)


def test_painting_blends_in_inside_of_the_mask_alone():
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    blend = blend_of(mask, 6)
    assert (blend[:, :16] == 0).all()
    assert (np.diff(blend[16, 16:]) >= 0).all()
    assert 0 < blend[16, 16] < 0.3 * 255
    assert (blend[:, 24:] == 255).all()
    assert np.array_equal(blend_of(mask, 0), mask)


def test_what_is_over_holds_no_picture(client):
    body = ask(image=encoded(noise(16, 16)), mask=encoded(half(16, 16)))
    answer = client.post(AND, json=body, headers={"Prefer": "respond-async"})
    keeper = client.app.state.services.keeper
    record = client.portal.call(keeper.find, answer.json()["id"], "address:testclient")
    assert record.job.weight == 0 or record.job.weight == 16 * 16 * 5
    record.job.result.result(60)
    until(lambda: record.job.settled)  # who waits is told first
    assert record.job.source is None


def test_pictures_that_wait_are_bounded_in_bytes(models):
    settings = Settings(waiting_bytes=3 * 16 * 16 + 1, running_rows=1)
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as client:
        body = ask(image=encoded(noise(16, 16)), steps=400)
        answers = [client.post(AND, json=body, headers={"Prefer": "respond-async"}) for _ in range(6)]
        taken = [answer for answer in answers if answer.status_code == 202]
        # One runs with each worker, and one waits.
        assert 1 <= len(taken) <= 1 + len(client.get("/v1/workers").json()["workers"])
        for answer in answers:
            if answer not in taken:
                assert "bytes of pictures wait already" in refused(answer, 429)["detail"]
        for answer in taken:
            client.delete(answer.headers["Location"])


def test_models_beyond_the_budget_are_loaded_once_a_request_and_never_by_the_event_loop(folders, monkeypatch):
    loads = []
    load = Catalog._load

    def noted(catalog, entry):
        loads.append((entry.name, threading.current_thread().name))
        return load(catalog, entry)

    monkeypatch.setattr(Catalog, "_load", noted)
    entries = [Entry(name, folders / name) for name in ("one", "two")]
    catalog = Catalog(entries, "cpu", MemoryPolicy(budget=1))
    with TestClient(create_app(Settings(preload=False), catalog=catalog)) as client:
        for _ in range(3):
            loads.clear()
            assert client.post(AND, json=ask()).status_code == 200
            names = [name for name, _ in loads]
            assert len(set(names)) == len(names)
            assert all(thread.startswith("superdiff-loader") for _, thread in loads)


class TestMasks:
    """What a mask says must be what is painted: neither guessed nor stretched."""

    HALF = np.repeat([[0, 255]], 4, axis=0).repeat(2, axis=1).astype(np.uint8)

    @pytest.mark.parametrize(
        ("mask", "painted", "expected"),
        [
            (Image.fromarray(HALF), "white", HALF),
            (Image.fromarray(HALF), "black", 255 - HALF),
            (Image.merge("LA", [Image.new("L", (4, 4), 255), Image.fromarray(HALF)]), "clear", 255 - HALF),
        ],
    )
    def test_one_part_of_it_is_painted(self, mask, painted, expected):
        assert np.array_equal(np.asarray(read_mask(mask, painted, (4, 4))), expected)

    @pytest.mark.parametrize(
        ("mask", "painted", "told"),
        [
            (Image.new("L", (4, 5)), "white", "4×5 pixels, the image 4×4"),
            (Image.merge("LA", [Image.new("L", (4, 4), 255), Image.fromarray(HALF)]), "white", "make it white"),
            (Image.new("L", (4, 4)), "clear", "no transparent pixels"),
        ],
    )
    def test_what_says_it_otherwise_is_refused(self, mask, painted, told):
        with pytest.raises(InvalidInputError, match=told) as caught:
            read_mask(mask, painted, (4, 4))
        assert caught.value.field == ("mask",)
