"""The builtin models' tokenizer: CLIP's byte-pair encoding, trained to exhaustion on the words that captions use.

Every byte is a token, so no text is ever refused: a word outside the list falls apart into letters, and the recipe
shows such words to the text encoder as noise that means nothing.
"""

import json
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
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
    """Merges that make each word one token: byte-pair training with no limit ends when nothing is left to merge."""
    bpe = Tokenizer(BPE(end_of_word_suffix=_WORD_END))
    bpe.pre_tokenizer = Whitespace()
    bpe.train_from_iterator(words, BpeTrainer(end_of_word_suffix=_WORD_END, show_progress=False))
    return [(a, b) for a, b in json.loads(bpe.to_str())["model"]["merges"]]


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Build the tokenizer, save it in the layout that diffusers' pipelines read, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = byte_pair_merges(WORDS)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(c + _WORD_END for c in letters), *dict.fromkeys(a + b for a, b in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer
