"""The AUTOMATIC1111 dialect's own parts: how it reads masks and regions, the script, and what it remembers."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipelines.errors import InvalidInputError, UnknownModelError
from pipelines.grammar import format as text_of
from service.api.sdapi.inpainting import Patch, painted, prepare, region_of
from service.api.sdapi.schemas import ImageToImage, TextToImage
from service.api.sdapi.script import script_of
from service.api.sdapi.sessions import ChosenModels
from tests.service.test_images import encoded, half, noise

MODELS = ("one", "two")
SIDES = st.integers(1, 300)


def asked(prompt, **script):
    scripts = {"SuperDiff": {"args": [script]}}
    return text_of(script_of(scripts).written(prompt, MODELS).expression, default_model="one")


@pytest.mark.parametrize(
    ("prompt", "script", "text"),
    [
        ("a", {}, '"a"'),
        ("a", {"models": ["two"]}, '"a"@two'),
        ("a", {"models": ["one", "two"]}, '"a" AND "a"@two'),
        ("a OR b", {"models": ["one", "two"], "sharpness": 1.0}, '("a" OR "b") AND[sharpness=1] ("a"@two OR "b"@two)'),
        ("a AND b", {"operator": "or", "temperature": 3.0}, '"a" OR[temperature=3] "b"'),
        ("a:2 AND b", {"operator": "product"}, 'PRODUCT("a":2, "b":0)'),
        ("a AND b:2", {"method": "balanced", "lift": 1.0}, '"a":1 AND[balanced] "b":2'),
        ("NOT a", {"operator": "and"}, 'AND(NOT "a")'),
        ("a, (b:1.2)", {"operator": "average", "models": ["two", "one"]}, 'AVERAGE("a, (b:1.2)"@two, "a, (b:1.2)")'),
    ],
)
def test_the_script_composes(prompt, script, text):
    assert asked(prompt, **script) == text


@pytest.mark.parametrize(
    ("prompt", "script", "field", "told"),
    [
        ("a", {"temperature": 1.0}, "temperature", "the prompt has no operator"),
        ("a AND b", {"temperature": 1.0}, "temperature", "the outermost operator, AND, has none"),
        ("a OR b", {"lift": 1.0}, "lift", "has none"),
        ("a", {"particles": 65}, "particles", "less than or equal to 64"),
        ("a", {"sharpnes": 1}, "sharpnes", "there are operator, models, method"),
        ("a", {"operator": "not"}, "operator", "should be 'and', 'or'"),
    ],
)
def test_what_the_script_cannot_do_is_refused(prompt, script, field, told):
    with pytest.raises(InvalidInputError, match=told) as raised:
        asked(prompt, **script)
    assert raised.value.field == ("alwayson_scripts", "superdiff", field)


def test_the_script_s_models_must_be_there_and_one_xor_needs_two():
    with pytest.raises(UnknownModelError, match="'three'"):
        asked("a", models=["one", "three"])
    with pytest.raises(InvalidInputError) as raised:
        asked("a", operator="xor")
    assert raised.value.field == ("prompt",)


@pytest.mark.parametrize("named", ["two", "two [0123abcdef]", "two.safetensors", "two.ckpt [ab12]"])
def test_a_checkpoint_s_title_means_its_model(named):
    body = TextToImage(prompt="a", override_settings={"sd_model_checkpoint": named})
    assert body.written(MODELS, None).expression.model == "two"


def test_a_request_s_model_goes_before_the_caller_s_before_the_first():
    named = TextToImage(prompt="a", override_settings={"sd_model_checkpoint": "one"})
    assert named.written(MODELS, "two").expression.model == "one"
    assert TextToImage(prompt="a").written(MODELS, "two").expression.model == "two"
    assert TextToImage(prompt="a").written(MODELS, None).expression.model == "one"


def test_numbers_come_as_clients_of_the_webui_send_them():
    body = TextToImage(steps="20", width=64.0, cfg_scale=7, seed=None, sampler_name=None, sampler_index="Euler a")
    assert (body.steps, body.width, body.cfg_scale, body.seed) == (20, 64, 7.0, -1)


def test_what_is_echoed_is_json_again():
    body = TextToImage.model_validate({"a": [math.nan, {"b": -math.inf, "c": "x"}], "prompt": None})
    assert body.echo()["a"] == [None, {"b": None, "c": "x"}]
    deep = functools.reduce(lambda inner, _: [inner], range(500), 1)
    with pytest.raises(ValidationError, match="nested more than 32 deep"):
        TextToImage.model_validate({"a": deep})


def test_the_callers_that_were_away_the_longest_are_forgotten():
    chosen = ChosenModels(most=2)
    chosen.choose("a", "one")
    chosen.choose("b", "two")
    assert chosen.of("a") == "one"
    chosen.choose("c", "one")
    assert [chosen.of(caller) for caller in "abc"] == ["one", None, "one"]


def test_a_mask_of_another_size_is_brought_to_the_picture_s():
    mask = painted(half(64, 32), (32, 16), whole_pixels=True, invert=False)
    np.testing.assert_array_equal(np.asarray(mask), np.asarray(half(32, 16)))
    inverse = painted(half(32, 16), (32, 16), whole_pixels=True, invert=True)
    np.testing.assert_array_equal(np.asarray(inverse), 255 - np.asarray(half(32, 16)))


def test_grey_becomes_black_or_white_unless_it_shall_stay():
    grey = Image.fromarray(np.array([[0, 100, 128, 129, 255]], dtype=np.uint8))
    assert [*np.asarray(painted(grey, (5, 1), whole_pixels=True, invert=False))[0]] == [0, 0, 0, 255, 255]
    assert [*np.asarray(painted(grey, (5, 1), whole_pixels=False, invert=False))[0]] == [0, 100, 128, 129, 255]


def test_of_a_transparent_mask_what_is_opaque_is_painted():
    mask = Image.new("RGBA", (4, 1), (0, 0, 0, 255))
    mask.putpixel((0, 0), (255, 255, 255, 0))
    assert [*np.asarray(painted(mask, (4, 1), whole_pixels=True, invert=False))[0]] == [0, 255, 255, 255]
    opaque = Image.new("RGBA", (4, 1), (0, 0, 0, 255))
    opaque.putpixel((0, 0), (255, 255, 255, 255))
    assert [*np.asarray(painted(opaque, (4, 1), whole_pixels=True, invert=False))[0]] == [255, 0, 0, 0]


@pytest.mark.parametrize(
    ("bounds", "padding", "size", "box"),
    [
        ((100, 100, 164, 164), 0, (512, 512), (100, 100, 164, 164)),
        ((100, 100, 164, 164), 32, (512, 512), (68, 68, 196, 196)),
        # The WebUI's own example: a mask of 128×32 becomes 128×128.
        ((0, 200, 128, 232), 0, (512, 512), (0, 152, 128, 280)),
        ((0, 500, 128, 512), 0, (512, 512), (0, 384, 128, 512)),
        ((0, 0, 128, 8), 4, (512, 100), (0, 0, 132, 100)),
    ],
)
def test_the_region_of_a_mask_gets_the_proportions_asked_for(bounds, padding, size, box):
    assert region_of(bounds, padding, (64, 64), size) == box


@settings(deadline=None)
@given(st.data(), SIDES, SIDES, st.integers(0, 64), st.one_of(st.none(), st.tuples(SIDES, SIDES)))
def test_a_region_holds_the_mask_and_lies_in_the_picture(data, width, height, padding, asked_size):
    left = data.draw(st.integers(0, width - 1))
    top = data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    box = region_of((left, top, right, bottom), padding, asked_size, (width, height))
    assert 0 <= box[0] <= left
    assert 0 <= box[1] <= top
    assert right <= box[2] <= width
    assert bottom <= box[3] <= height


@pytest.mark.parametrize("sampled", [(64, 64), (20, 30), (7, 5)])
def test_pasting_changes_what_is_painted_alone(sampled):
    picture = np.asarray(noise(60, 50))
    blend = np.zeros((30, 20), dtype=np.uint8)
    blend[10:20, 5:15] = 255
    blend[20, 5:15] = 128
    patch = Patch(picture, (7, 9, 27, 39), blend)
    pasted = patch.pasted(np.full((*sampled[::-1], 3), 200, dtype=np.uint8))
    whole = np.zeros((50, 60), dtype=np.uint8)
    whole[9:39, 7:27] = blend
    np.testing.assert_array_equal(pasted[whole == 0], picture[whole == 0])
    assert (pasted[whole == 255] == 200).all()
    between = (picture[whole == 128].astype(float) * 127 + 200 * 128) / 255
    assert np.abs(pasted[whole == 128] - between).max() <= 0.5


def test_a_blank_mask_paints_nothing_of_the_whole_picture():
    blank = encoded(Image.new("L", (20, 16)))
    body = ImageToImage(init_images=[encoded(noise(20, 16))], mask=blank, inpaint_full_res=True)
    known, patch = prepare(body, 10_000)
    assert patch is None
    assert known.mask.getextrema() == (0, 0)


def test_an_empty_mask_is_none():
    body = ImageToImage(init_images=[encoded(noise(20, 16))], mask="", inpaint_full_res=True)
    known, patch = prepare(body, 10_000)
    assert (known.mask, patch) == (None, None)


@pytest.mark.parametrize(("mode", "fit"), [(0, "stretch"), (1, "crop"), (2, "pad"), (3, "stretch")])
def test_a_picture_of_other_proportions_is_fitted_as_the_mode_says(mode, fit):
    body = ImageToImage(init_images=[encoded(noise(20, 16))], mask=encoded(half(40, 32)), resize_mode=mode, mask_blur=3)
    known, _ = prepare(body, 10_000)
    assert (known.fit, known.feather, known.mask.size) == (fit, 3.0, (20, 16))
