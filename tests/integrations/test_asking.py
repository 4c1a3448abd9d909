"""The plug-in's plain part: no Krita, no Qt, no service."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from integrations.krita.superdiff_krita import png
from integrations.krita.superdiff_krita.asking import Snapshot, Wishes, order
from integrations.krita.superdiff_krita.geometry import Rect, SizeError, Sizes, drawn_size, region, sizes_of
from integrations.krita.superdiff_krita.pixels import cut, shown, to_rgba


def model(name, *, default=False, width=64, height=64, multiple=16, loaded=True):
    if not loaded:
        width = height = multiple = None
    return {
        "id": name,
        "default": default,
        "loaded": loaded,
        "width": width,
        "height": height,
        "multiple": multiple,
    }


SHAPES = model("shapes", default=True)
LARGE = model("large", width=512, height=768, multiple=24)
SIZES = Sizes(64, 64, 16, fixed=False)
WISHES = Wishes("http://here", '"a" AND "b"', None, None, None, from_canvas=False)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pillow_reads_the_png_back(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png.encode(pixels.tobytes(), 7, 5))))
    np.testing.assert_array_equal(read.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("data", [b"", b"12345", b"12345678"])
def test_a_wrong_number_of_bytes_is_refused(data):
    with pytest.raises(ValueError, match="are not 2×2 pixels"):
        png.encode(data, 2, 2)


def test_pixels_are_cut_turned_and_shown_where_they_are_selected():
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, 4), np.uint8)
    part = cut(pixels.tobytes(), Rect(0, 0, 9, 6), Rect(2, 1, 4, 3), 4)
    inner = pixels[1:4, 2:6]
    assert part == inner.tobytes()
    assert to_rgba(part) == inner[..., [2, 1, 0, 3]].tobytes()
    mask = np.array([0, 1, 255] * 4, np.uint8)
    layer = np.frombuffer(shown(part, mask.tobytes()), np.uint8).reshape(-1, 4)
    np.testing.assert_array_equal(layer[:, 3], np.where(mask, 255, 0))
    np.testing.assert_array_equal(layer[:, :3], inner.reshape(-1, 4)[:, :3])


sides = st.integers(1, 300)


@given(sides, sides, sides, sides, sides, sides, st.sampled_from([1, 8, 16, 64]))
def test_a_region_holds_the_selection_lies_on_the_canvas_and_has_the_models_sides(cw, ch, x, y, w, h, multiple):
    canvas = Rect(0, 0, cw, ch)
    selection = Rect(x, y, w, h).within(canvas)
    if not selection.width or not selection.height:
        return
    found = region(selection, canvas, Sizes(64, 96, multiple, fixed=False))
    assert found.within(canvas) == found
    assert selection.within(found) == selection
    for side, best, limit in ((found.width, 64, cw), (found.height, 96, ch)):
        assert side == limit or (side % multiple == 0 and side >= best)


def test_a_region_is_around_the_selection():
    assert region(Rect(100, 50, 20, 30), Rect(0, 0, 160, 120), SIZES) == Rect(78, 33, 64, 64)
    assert region(Rect(0, 110, 10, 10), Rect(0, 0, 160, 120), SIZES) == Rect(0, 56, 64, 64)


def test_the_sizes_are_those_of_the_models_that_the_text_names():
    models = [SHAPES, LARGE, model("cold", loaded=False)]
    assert sizes_of(models, '"a" AND "b"') == Sizes(64, 64, 16, fixed=False)
    assert sizes_of(models, '"a" AND "b"@large') == Sizes(512, 768, 48, fixed=False)
    assert sizes_of(models, '"a"@"large"') == Sizes(512, 768, 48, fixed=False)
    assert sizes_of(models, '"a"@cold') == Sizes(64, 64, 16, fixed=False)
    assert sizes_of([model("only", default=True, loaded=False)], "a") == Sizes(0, 0, 1, fixed=False)


def test_a_model_of_one_size_says_what_it_has():
    only = sizes_of([model("faces", default=True, multiple=0)], "a")
    assert only == Sizes(64, 64, 1, fixed=True)
    assert region(Rect(5, 5, 64, 3), Rect(0, 0, 100, 100), only) == Rect(5, 0, 64, 64)
    with pytest.raises(SizeError, match="64×64 only; the selection has 65×3 pixels, so select less"):
        region(Rect(5, 5, 65, 3), Rect(0, 0, 100, 100), only)
    with pytest.raises(SizeError, match="64×64 only; the canvas has 60×100 pixels, so make it larger"):
        region(Rect(5, 5, 6, 3), Rect(0, 0, 60, 100), only)
    with pytest.raises(SizeError, match="64×64 only; the canvas has 100×100 pixels"):
        drawn_size(Rect(0, 0, 100, 100), only)


def picture(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def snapshot(mask=None, selected=None):
    pixels = np.random.default_rng(2).integers(0, 256, (100, 130, 4), np.uint8)
    whole = Rect(0, 0, 130, 100)
    return pixels, Snapshot(whole, pixels.tobytes(), None if mask is None else mask.tobytes(), selected)


def test_only_what_was_filled_in_is_asked_for():
    _, taken = snapshot()
    bare = order(WISHES, taken, [SHAPES]).body
    assert bare == {"expression": '"a" AND "b"', "output_format": "png", "width": 144, "height": 112}
    full = order(WISHES._replace(seed=0, steps=5, strength=0.5), taken, [SHAPES]).body
    assert full == bare | {"seed": 0, "steps": 5}


def test_a_selection_is_sent_as_a_mask_of_exactly_the_image_s_size():
    mask = np.zeros((100, 130), np.uint8)
    mask[20:30, 40:70] = 255
    pixels, taken = snapshot(mask, Rect(40, 20, 30, 10))
    asked = order(WISHES._replace(strength=0.4), taken, [SHAPES])
    assert asked.place == Rect(23, 0, 64, 64)
    np.testing.assert_array_equal(picture(asked.body["image"]), pixels[:64, 23:87][..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(picture(asked.body["mask"]), mask[:64, 23:87])
    assert asked.mask == mask[:64, 23:87].tobytes()
    assert asked.body["strength"] == 0.4
    assert not {"width", "height"} & set(asked.body)


def test_the_canvas_is_sent_whole_where_it_is_begun_from():
    pixels, taken = snapshot()
    asked = order(WISHES._replace(from_canvas=True), taken, [SHAPES])
    np.testing.assert_array_equal(picture(asked.body["image"]), pixels[..., [2, 1, 0, 3]])
    assert (asked.place, asked.mask) == (Rect(0, 0, 130, 100), None)
    assert "mask" not in asked.body


def test_a_selection_beside_the_canvas_is_refused():
    _, taken = snapshot(np.zeros((100, 130), np.uint8), Rect(200, 0, 10, 10))
    with pytest.raises(SizeError, match="the selection lies beside the canvas"):
        order(WISHES, taken, [SHAPES])
