"""The builtin models' tokenizers: CLIP's byte-pair encoding, with just the merges that the captions' words need.

Every byte is a token, so no text is ever refused: a word outside the list falls apart into letters, and the recipe
shows such words to the text encoder as noise that means nothing.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from pipelines.builtin.scenes import COLOURS, SHAPES

MAX_TOKENS: Final = 24
WORDS: Final = (
    *("a", "an", "the", "and", "of", "with", "on", "in", "shape"),
    *("photo", "picture", "image", "drawing", "painting", "one", "two", "three"),
    *COLOURS,
    *SHAPES,
)
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
_WORD_END: Final = "</w>"


def byte_pair_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Merges that make each word one token, the same ones at every run.

    Word by word: what the merges so far leave of it is merged from the left. Later merges rank lower, so they never
    come between an earlier word and its token. (A trained vocabulary would break ties differently from run to run, and
    with them the numbers of the tokens.)
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(pieces := _encode([*word[:-1], word[-1] + _WORD_END], ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return list(ranks)


def _encode(pieces: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: the earliest merge that applies, at its first place, until none does."""
    while applicable := [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        i = min(applicable)[1]
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    return pieces


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS) -> CLIPTokenizer:
    """Build the tokenizer of these words, save it in the layout that diffusers' pipelines read, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = byte_pair_merges(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(c + _WORD_END for c in letters), *dict.fromkeys(a + b for a, b in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer
