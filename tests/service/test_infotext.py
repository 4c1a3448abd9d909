"""Infotexts: what the WebUI's own examples say, and that nothing is lost on the way there and back."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.card import Card, DataSpace
from pipelines.composition import And, Or, Prompt
from pipelines.errors import InvalidInputError
from pipelines.kernel import DenoisingError, Kernel
from pipelines.noise import Grid
from pipelines.params import SamplingParams, Select
from pipelines.plan import make_plan
from service.expressions import from_prompt
from service.infotext import infotext, parse, prompt_of
from service.pictures import encode_picture, picture_text

CARD = Card(
    space=DataSpace("pixel", 3),
    sigma_min=0.01,
    sigma_max=80.0,
    error=DenoisingError.gaussian(0.5, 0.01, 80.0),
    width=64,
    height=48,
    takes_prompts=True,
    parameters=1,
    calibrated=False,
    adapters=("ink", "clay"),
)
MODELS = ("one", "two")
# As the WebUI documents it, in the docstring of its own parser.
THEIRS = """girl with an artist's beret, ((eyeshadow)), (coquettish), detailed, intricate
Negative prompt: ugly, (((deformed))), [blurry], bad anatomy,
(extra_limb), messy drawing
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""


def plan(expression, **given):
    return make_plan(expression, SamplingParams(**given), dict.fromkeys(MODELS, CARD))


def test_the_webui_s_own_text_is_read():
    told = parse(THEIRS)
    assert told["Prompt"] == "girl with an artist's beret, ((eyeshadow)), (coquettish), detailed, intricate"
    assert told["Negative prompt"] == "ugly, (((deformed))), [blurry], bad anatomy,\n(extra_limb), messy drawing"
    assert (told["Sampler"], told["CFG scale"], told["Seed"]) == ("Euler a", "7", "965400086")
    assert (told["Size-1"], told["Size-2"], told["Model hash"]) == ("512", "512", "45dee52b")


def test_a_value_in_quotes_ends_at_its_quotation_mark():
    told = parse('a\nSteps: 20, Lora hashes: "ink: 12, clay: \\"34", Seed: 1, Version: v1.6')
    assert (told["Lora hashes"], told["Seed"]) == ('ink: 12, clay: "34', "1")


@pytest.mark.parametrize("text", ["", "a cat", "a cat\nNegative prompt: a dog", "Steps: 1"])
def test_a_text_without_parameters_is_all_prompt(text):
    assert set(parse(text)) == {"Prompt", "Negative prompt"}


def test_a_plan_is_written_as_the_webui_writes_it():
    drawn = plan(
        Prompt("a cat, (masterpiece:1.2)", "one"),
        negative_prompt="blurry",
        steps=20,
        guidance_scale=7.5,
        kernel=Kernel.DETERMINISTIC,
        grid=Grid.KARRAS,
        candidates=2,
        select=Select.DENSITY,
    )
    assert infotext(drawn, 12) == (
        "a cat, (masterpiece:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: deterministic, Schedule type: karras, "
        "CFG scale: 7.5, Seed: 12, Size: 64x48, Model: one, Candidates: 2, Select: density, Version: superdiff-serve"
    )


LINE = "Steps: 1, Seed: 2, Size: 3x3"
TRICKY = ["a cat", "AND", "(red:1.2)", '"STOP"', "\n", "Negative prompt:", LINE, " ", "'", "\\"]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.sampled_from(TRICKY), max_size=6).map(" ".join),
)
LEAVES = st.builds(
    Prompt,
    TEXTS,
    st.sampled_from(MODELS),
    st.sampled_from([(), (("ink", 0.8),), (("clay", 1.0), ("ink", -0.25))]),
    st.one_of(st.none(), TEXTS),
)
EXPRESSIONS = st.one_of(
    LEAVES,
    st.builds(And, st.tuples(LEAVES, LEAVES), st.sampled_from([(), (1.5, 0.0)])),
    st.builds(Or, st.tuples(LEAVES, LEAVES), st.just(3.0)),
)


@settings(deadline=None)
@given(EXPRESSIONS, TEXTS, st.integers(0, 2**53 - 1), st.floats(0, 100), st.integers(1, 1000))
def test_what_was_asked_for_can_be_asked_for_again(expression, negative, seed, scale, steps):
    told = parse(infotext(plan(expression, negative_prompt=negative, guidance_scale=scale, steps=steps), seed))
    default = told["Model"]
    others = tuple(name for name in MODELS if name != default)
    assert from_prompt(told["Prompt"], (default, *others)).expression == expression
    assert told["Negative prompt"].split() == negative.split()
    assert (int(told["Seed"]), float(told["CFG scale"]), int(told["Steps"])) == (seed, scale, steps)
    assert (told["Size-1"], told["Size-2"]) == ("64", "48")


@pytest.mark.parametrize(
    ("prompt", "expression"),
    [
        ("a cat, (masterpiece:1.2), [blurry]", Prompt("a cat, (masterpiece:1.2), [blurry]", "one")),
        ("a cat <lora:ink:0.8>, a hat<lora:clay>", Prompt("a cat, a hat", "one", (("clay", 1.0), ("ink", 0.8)))),
        ('a sign "STOP AND GO"', Prompt('a sign "STOP AND GO"', "one")),
        (
            "PRODUCT PHOTO of AVERAGE quality, AT LEAST nice",
            Prompt("PRODUCT PHOTO of AVERAGE quality, AT LEAST nice", "one"),
        ),
        ("rock and roll", Prompt("rock and roll", "one")),
        ("a@two.com", Prompt("a@two.com", "one")),
        ('"a cat"@two', Prompt("a cat", "two")),
        ("a cat AND a dog<lora:ink>", And((Prompt("a cat", "one"), Prompt("a dog", "one", (("ink", 1.0),))))),
        ("a cat :1.2 AND a dog :0.8", And((Prompt("a cat", "one"), Prompt("a dog", "one")), (1.2, 0.8))),
    ],
)
def test_a_prompt_is_plain_text_unless_it_uses_an_operator(prompt, expression):
    assert from_prompt(prompt, MODELS).expression == expression
    assert from_prompt(prompt_of(expression, "one"), MODELS).expression == expression


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a <lora:ink:much>", "at column 13: the scale of a LoRA must be a number"),
        ("a <lora:ink:1> <lora:ink:2>", "at column 22: the LoRA 'ink' is given twice"),
        ("a <lora:ink:11>", "less than or equal to 10"),
        ("a" * 4001, "at most 4000 characters"),
        ('5" disk AND hat', "at column 2"),
    ],
)
def test_a_prompt_s_fault_is_told(prompt, told):
    with pytest.raises(InvalidInputError, match=told):
        from_prompt(prompt, MODELS)


def test_a_png_carries_texts_of_any_language():
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    texts = {"parameters": "a cat\nSteps: 1", "Title": "猫 ☆"}
    data = encode_picture(pixels, "png", texts)
    assert b"tEXtparameters" in data
    assert picture_text(data, "image", 100) == Image.open(io.BytesIO(data)).text == texts
    for other in ("jpeg", "webp"):
        assert picture_text(encode_picture(pixels, other, texts), "image", 100) == {}
