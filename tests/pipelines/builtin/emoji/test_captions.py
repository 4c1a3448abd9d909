"""What things are called, and that each word of it is one token."""

import json

import numpy as np
import pytest
from transformers import CLIPTokenizer

from pipelines.builtin.emoji.captions import Thing, caption, read_things, words_of
from pipelines.builtin.emoji.names import LEFT_AS_DRAWN, NAMES, STYLES, WITHOUT_ARTICLE, with_article
from pipelines.builtin.vocabulary import write_tokenizer
from tests.pipelines.builtin.emoji.drawn import draw_data

CAT = Thing("cat", "cat face", ("pet", "kitten"))


def test_names_are_enough_and_each_has_a_picture_of_its_own():
    assert 250 <= len(NAMES) <= 350
    assert len(set(NAMES.values())) == len(NAMES)
    assert set(NAMES) >= WITHOUT_ARTICLE | LEFT_AS_DRAWN


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("UFO", "a UFO"),
        ("grapes", "grapes"),
    ],
)
def test_articles_are_english(name, said):
    assert with_article(name) == said


def test_captions_name_the_thing_and_no_other_style():
    rng = np.random.default_rng(0)
    said = [caption(CAT, "fluent", rng) for _ in range(2000)]
    named = [text for text in said if text]
    # 2,000 draws: a tenth within four standard deviations of 0.0067.
    assert 0.07 < 1 - len(named) / len(said) < 0.13
    assert all("cat" in text for text in named)
    assert not any("noto" in text for text in named)
    assert 0.45 < np.mean(["fluent style" in text for text in named]) < 0.55
    assert {"cat", "a cat", "cat face", "a cat face", "a cat, kitten", "a cat, pet, fluent style"} <= set(named)


def test_things_are_read_from_the_fetched_data(tmp_path):
    draw_data(tmp_path, ())
    things = read_things(tmp_path, ["dog", "cat"])
    assert [thing.full_name for thing in things] == ["whole dog", "whole cat"]
    assert (
        things[1].keywords
        == ("key3",)
        == tuple(json.loads((tmp_path / "captions.json").read_text())["cat"]["keywords"])
    )


def test_each_word_of_the_captions_is_one_token(tmp_path):
    things = [CAT, Thing("t-shirt", "T-shirt", ("clothing",)), Thing("8 ball", "pool 8 ball", ())]
    words = words_of(things)
    assert len(words) == len(set(words))
    assert {"a", "an", *STYLES, "style", "cat", "face", "kitten", "t", "shirt", "8"} <= set(words)
    write_tokenizer(tmp_path, words)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for word in words:
        assert len(tokenizer.tokenize(word)) == 1
    assert tokenizer.tokenize("a cat, fluent style") == ["a</w>", "cat</w>", ",</w>", "fluent</w>", "style</w>"]
