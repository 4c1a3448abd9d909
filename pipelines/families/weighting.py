r"""Prompts for CLIP whose words have weights, or that are longer than CLIP's 77 tokens.

``(a red hat:1.3)`` gives a phrase the weight 1.3; weights of nested phrases multiply. ``\(`` is a plain parenthesis,
and so is one that encloses no weight. Longer texts are encoded in several pieces, split between sentences or phrases. A
prompt without weights that is short enough is passed to diffusers unchanged.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from pipelines.errors import InvalidInputError

Fragments = list[tuple[str, float]]

_WEIGHT: Final = re.compile(r":\s*(\d+(?:\.\d*)?|\.\d+)\s*$")
_PIECE: Final = re.compile(r"\\[\\()]|[()]|[^\\()]+|\\")


def parse(text: str) -> Fragments:
    """A prompt as phrases with their weights: "a (red hat:1.3)" → [("a ", 1.0), ("red hat", 1.3)]."""
    levels: list[Fragments] = [[]]
    before = ""
    for piece in _PIECE.findall(text):
        last, before = before, piece
        if piece == "(":
            levels.append([])
        elif piece == ")" and len(levels) > 1:
            inner = levels.pop()
            # A weight stands right before the closing parenthesis; one inside an inner pair belongs to that pair.
            found = _WEIGHT.search(last) if last not in "()" else None
            if found is None:
                levels[-1] += [("(", 1.0), *inner, (")", 1.0)]
            else:
                inner[-1] = (inner[-1][0][: found.start()], inner[-1][1])
                levels[-1] += [(words, weight * float(found[1])) for words, weight in inner]
        else:
            levels[-1].append((piece[-1] if piece.startswith("\\") else piece, 1.0))
    while len(levels) > 1:
        inner = levels.pop()
        levels[-1] += [("(", 1.0), *inner]
    return _joined(levels[0])


def _joined(fragments: Fragments) -> Fragments:
    """Merge neighbours of equal weight and drop empty fragments."""
    joined: Fragments = []
    for words, weight in fragments:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + words, weight)
        elif words:
            joined.append((words, weight))
    return joined


class WeightedEncoder:
    """CLIP encoders for texts with weights and long texts.

    Args:
        tokenizers: One for each encoder.
        encoders: Their states are concatenated along the width.
        penultimate: Whether to take the states before the last layer without the final norm, as SDXL does, instead of
            the normed last ones.
        pooled: Whether to return the last encoder's pooled state too.

    References:
        compel, https://github.com/damian0815/compel, which encodes them.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        encoders: Sequence[torch.nn.Module],
        *,
        penultimate: bool = False,
        pooled: bool = False,
    ) -> None:
        self._tokenizers, self._encoders = tokenizers, encoders
        self._penultimate, self._pooled = penultimate, pooled

    def plain(self, text: str) -> str | None:
        """The text without its markup, for diffusers to encode; None if it has weights or is too long for that."""
        fragments = parse(text)
        words = "".join(phrase for phrase, _ in fragments)
        weighted = any(weight != 1 for _, weight in fragments)
        fits = all(len(t(words).input_ids) <= t.model_max_length for t in self._tokenizers)
        return words if fits and not weighted else None

    def encode(self, text: str) -> tuple[Tensor, Tensor | None]:
        """States, (1, pieces × tokens, widths), and the pooled one, (1, width), or None unless ``pooled`` is set."""
        # Imported when a prompt needs it: most need none of it.
        from compel.embeddings_provider import EmbeddingsProvider, EmbeddingsProviderMulti, ReturnedEmbeddingsType

        kinds = ReturnedEmbeddingsType
        penultimate, last_normed = kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED, kinds.LAST_HIDDEN_STATES_NORMALIZED
        fragments = parse(text) or [("", 1.0)]
        words, weights = [f for f, _ in fragments], [w for _, w in fragments]
        device = next(self._encoders[0].parameters()).device
        provider = EmbeddingsProviderMulti(
            list(self._tokenizers),
            list(self._encoders),
            truncate=False,
            returned_embeddings_type=penultimate if self._penultimate else last_normed,
        )
        states = provider.get_embeddings_for_weighted_prompt_fragments([words], [weights], device=device)
        if not self._pooled:
            return states, None
        last = EmbeddingsProvider(self._tokenizers[-1], self._encoders[-1], truncate=True)
        return states, last.get_pooled_embeddings(["".join(words)], device=device)


def stack(rows: Sequence[Tensor]) -> Tensor:
    """Concatenate rows into one batch; raises :class:`InvalidInputError` if they differ in the number of pieces."""
    if len({row.shape[1:] for row in rows}) > 1:
        detail = "texts that CLIP encodes in different numbers of pieces must be encoded one by one"
        raise InvalidInputError(detail, field=("prompt",))
    return torch.cat(list(rows))
