"""Captions are true of their scenes, and say nothing of a scene but what they name."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from pipelines.builtin.captions import Caption, CaptionedScenes, Phrase, draw_caption, full_names
from pipelines.builtin.scenes import COLOURS, SHAPES, Scene, Thing, draw_scene


def thing(name):
    colour, shape = name.split()
    return Thing(shape, colour, 32.0, 32.0, 10.0, 0.0)


def scene(*names):
    return Scene(tuple(map(thing, names)), (255, 255, 255))


def is_true(text, picture):
    """Whether each phrase of a caption's text has a thing of its own: read from the words, by brute force."""
    wanted = [set(phrase.split()) & {*COLOURS, *SHAPES} for phrase in text.split(" and ")]
    orders = permutations([{t.colour, t.shape} for t in picture.things], len(wanted))
    return any(all(w <= t for w, t in zip(wanted, order, strict=True)) for order in orders)


def test_captions_are_true():
    rng = np.random.default_rng(0)
    captioned = CaptionedScenes([draw_scene(rng) for _ in range(400)])
    for _ in range(400):
        of_it = captioned.scenes[int(rng.integers(400))]
        assert is_true(str(draw_caption(of_it, rng)), of_it)
        caption, index = captioned.draw(rng)
        assert is_true(str(caption), captioned.scenes[index])


@pytest.mark.parametrize(
    ("phrases", "fits"),
    [
        ((Phrase("red", "circle"),), True),
        ((Phrase("blue", None), Phrase("red", None)), True),
        ((Phrase(None, "circle"), Phrase("red", None)), False),
        ((Phrase(None, "circle"), Phrase("red", "circle")), False),
        ((Phrase("red", "star"),), False),
        ((), True),
    ],
)
def test_each_phrase_needs_a_thing_of_its_own(phrases, fits):
    assert Caption(phrases).fits(scene("red circle", "blue star")) is fits


def test_captions_read_as_users_write_them():
    caption = Caption((Phrase("red", "circle"), Phrase(None, "star"), Phrase("blue", None)))
    assert str(caption) == "a red circle and a star and a blue shape"


def test_a_caption_says_nothing_of_how_many_things_there_are():
    """Half of the scenes have one thing, a quarter two, a quarter three: so have those given a caption true of each."""
    scenes = [
        scene("red circle"),
        scene("red circle", "blue star", "green square"),
        scene("blue star"),
        scene("red circle", "red circle"),
    ]
    rng = np.random.default_rng(1)
    captioned = CaptionedScenes(scenes)
    drawn = [index for caption, index in (captioned.draw(rng) for _ in range(12_000)) if str(caption) == "a red circle"]
    shares = Counter(drawn)
    assert set(shares) == {0, 1, 3}
    for index, expected in ((0, 1 / 2), (1, 1 / 4), (3, 1 / 4)):
        # Four standard errors of a share.
        margin = 4 * np.sqrt(expected * (1 - expected) / len(drawn))
        assert shares[index] / len(drawn) == pytest.approx(expected, abs=margin)


def test_there_are_24_captions_of_one_named_thing():
    assert len(set(full_names())) == len(full_names()) == 24
