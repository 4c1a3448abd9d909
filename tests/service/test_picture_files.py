"""Picture files as strangers send them: read, or refused by their field, whatever their bytes are."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines.catalog import Catalog
from pipelines.errors import InvalidInputError
from service import pictures
from service.app import create_app
from service.pictures import PictureTooLargeError, decode_picture, picture_text
from service.settings import Settings

SIDE = 12
MOST = 40 * 40


def file_of(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(SIDE, SIDE)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette_with_transparency():
    image = noise().quantize(8)
    image.info["transparency"] = 3
    return image


FRAMES = [noise("RGBA"), ImageOps.mirror(noise("RGBA"))]
FILES = {
    "PNG": file_of(noise(), "PNG"),
    "PNG of grey and alpha": file_of(noise("LA"), "PNG"),
    "PNG of one bit": file_of(noise("1"), "PNG"),
    "PNG of 16 bits": file_of(Image.fromarray(np.full((SIDE, SIDE), 40000, np.uint16)), "PNG"),
    "PNG of a palette": file_of(palette_with_transparency(), "PNG", transparency=3),
    "PNG with EXIF": file_of(noise(), "PNG", exif=turned(6)),
    "APNG": file_of(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "JPEG": file_of(noise(), "JPEG"),
    "JPEG of CMYK": file_of(noise("CMYK"), "JPEG"),
    "JPEG of grey": file_of(noise("L"), "JPEG"),
    "JPEG with EXIF": file_of(noise(), "JPEG", exif=turned(6)),
    "JPEG, progressive": file_of(noise(), "JPEG", progressive=True),
    "WebP": file_of(noise("RGBA"), "WEBP"),
    "WebP of frames": file_of(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "GIF": file_of(palette_with_transparency(), "GIF", transparency=3),
    "GIF of frames": file_of(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "BMP": file_of(noise(), "BMP"),
    "TIFF": file_of(noise(), "TIFF"),
    "TIFF of CMYK": file_of(noise("CMYK"), "TIFF"),
    "TIFF, deflated": file_of(noise(), "TIFF", compression="tiff_deflate"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_becomes_plain_pixels(name):
    picture = decode_picture(FILES[name], "image", MOST)
    assert picture.mode in {"L", "RGB", "RGBA"}
    assert picture.size == (SIDE, SIDE)
    assert np.asarray(picture).dtype == np.uint8


@pytest.mark.parametrize("name", ["PNG of a palette", "GIF"])
def test_a_palette_s_transparency_is_kept(name):
    clear = np.asarray(decode_picture(FILES[name], "image", MOST))[..., 3]
    assert 0 < (clear == 0).sum() < clear.size


def test_of_several_frames_the_first_is_taken():
    for name in ("APNG", "WebP of frames", "GIF of frames"):
        first = np.asarray(decode_picture(FILES[name], "image", MOST).convert("RGB"), int)
        plain = np.asarray(FRAMES[0].convert("RGB"), int)
        other = np.asarray(FRAMES[1].convert("RGB"), int)
        opaque = np.asarray(decode_picture(FILES[name], "image", MOST).convert("RGBA"))[..., 3] > 200
        assert np.abs(first - plain)[opaque].mean() < np.abs(first - other)[opaque].mean(), name


def check(data):
    """A file is a picture within the bounds, or is refused by its field; in base64 too."""
    for sent in (data, base64.b64encode(data).decode()):
        refusal = None
        try:
            picture = decode_picture(sent, "image", MOST)
            picture_text(sent, "image", MOST)
        except InvalidInputError as error:
            refusal = error
        if refusal is None:
            assert picture.mode in {"L", "RGB", "RGBA"}
            assert picture.width * picture.height <= MOST
        else:
            assert refusal.field == ("image",)
            assert len(str(refusal)) < 200
            assert "0x" not in str(refusal)


@given(name=st.sampled_from(sorted(FILES)), data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_broken_file_is_a_picture_or_a_named_fault(name, data):
    file = bytearray(FILES[name])
    kind = data.draw(st.sampled_from(["cut", "changed", "doubled", "sizes"]))
    at = data.draw(st.integers(0, len(file) - 1))
    if kind == "cut":
        del file[at:]
    elif kind == "changed":
        for place in [at, *data.draw(st.lists(st.integers(0, len(file) - 1), max_size=4))]:
            file[place] = data.draw(st.integers(0, 255))
    elif kind == "doubled":
        file[at:at] = file[at : at + data.draw(st.integers(1, 64))]
    else:
        # Where formats keep lengths and sides, something far too large.
        file[at : at + 4] = data.draw(
            st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0"])
        )
    check(bytes(file))


@given(st.binary(max_size=200), st.sampled_from([b"", *(file[:16] for file in FILES.values())]))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_picture_or_a_named_fault(tail, head):
    check(head + tail)


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_any_text_is_a_picture_or_a_named_fault(text):
    with pytest.raises(InvalidInputError):
        decode_picture(text, "image", MOST)


@pytest.mark.parametrize(("width", "height"), [(1 << 20, 1 << 10), (1 << 16, 1 << 16), (2**31 - 1, 1), (41, 40)])
def test_too_many_pixels_are_refused_by_the_header_alone(width, height):
    """The file holds no pixels at all: nothing but its header can have been read."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head
    file += struct.pack(">I", zlib.crc32(b"IHDR" + head)) + struct.pack(">I", 0) + b"IEND\xaeB`\x82"
    with pytest.raises(PictureTooLargeError, match="max_image_pixels"):
        decode_picture(file, "image", MOST)


def test_a_large_photo_may_make_a_small_answer(models):
    """The bound on pictures that come in is not that on answers."""
    photo = base64.b64encode(file_of(Image.new("RGB", (600, 400), (200, 100, 50)), "JPEG")).decode()
    body = {"components": ["a"], "steps": 1, "image": photo, "width": 16, "height": 16}
    bounds = Settings(max_pixels=16 * 16, max_image_pixels=600 * 400)
    with TestClient(create_app(bounds, catalog=Catalog.of(models))) as client:
        assert client.post("/v1/superpose/or", json=body).status_code == 200
        whole = client.post("/v1/superpose/or", json={**body, "width": None, "height": None})
        assert whole.status_code == 422
        assert "max_pixels" in whole.json()["detail"]


@pytest.mark.parametrize("more", [0, 1, 2])
def test_base64_of_any_length_is_read_in_parts(more, monkeypatch):
    monkeypatch.setattr(pictures, "_WINDOW", 8)
    data = bytes(range(24 + more))
    assert pictures.picture_file(base64.b64encode(data).decode(), "image") == data


@pytest.mark.parametrize(
    "sent", ["QUJDREU=QUJD", "QUJDREU=Q", "QUJDREVG\nQUJD", "QUJDREVGQ", "QUJDREVG=", "QUJDREVGéQQQ"]
)
def test_what_is_no_base64_anywhere_is_refused(sent, monkeypatch):
    """Padding in the midst too, though each part alone would be base64."""
    monkeypatch.setattr(pictures, "_WINDOW", 8)
    with pytest.raises(InvalidInputError, match="image is not base64"):
        pictures.picture_file(sent, "image")


def test_sixteen_bits_become_eight_in_every_band():
    deep = np.arange(150 * 3, dtype=np.uint16).reshape(150, 3) * 145
    picture = decode_picture(file_of(Image.fromarray(deep), "PNG"), "image", 1000)
    assert np.array_equal(np.asarray(picture), (deep.astype(np.int64) * 255 // 65535).astype(np.uint8))
