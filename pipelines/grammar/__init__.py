r"""Text ↔ expression: ``"a cat" AND ("a dog"@sd15 OR fox) NOT blur``.

A prompt is quoted or bare. A bare prompt is a run of words; it ends at an upper-case operator word and at any of
``" ( ) [ ] { } < > @ : \``. In quotes ``\"``, ``\'``, ``\\`` and ``\u001b`` are escapes; any other backslash is kept.
After a prompt may come, in any order, ``@model``, ``<lora:name:0.8>`` (scale 1 if absent) and ``{negative: blurry}``.
Names with spaces or signs in them are quoted: ``@"my model"``.

Operators, the tightest first. ``:number`` after a term, that is a prompt, a call or a parenthesis, is its number:

| text                                  | node     | number of a term | options in brackets                          |
|---------------------------------------|----------|------------------|----------------------------------------------|
| ``NOT a``                             | Not      |                  | ``NOT[1.5] a``: scale                        |
| ``a AND b``; ``a NOT b`` is AND NOT   | And      | lift, nats       | ``AND[balanced]``, ``AND[soft, sharpness=1]``|
| ``a XOR b``                           | Xor      | bias, nats       | ``XOR[sharpness=0.2]``                       |
| ``a OR b``                            | Or       | bias, nats       | ``OR[temperature=100]``                      |
| ``AVERAGE(a, b:2)``                   | Average  | weight           |                                              |
| ``PRODUCT(a, b:1.5)``                 | Product  | weight           |                                              |
| ``AT LEAST 2 OF (a, b, c)``           | AtLeast  |                  | ``AT LEAST 2 OF[sharpness=0.2] (a, b, c)``   |

A chain of one operator is one node, and its options are written once; parentheses keep the nesting as written. AND, OR
and XOR may be written as calls too, ``AND(a, b)``, which is how one of a single term is written. Within the parentheses
of a call commas separate terms, so a prompt with a comma needs quotes there; elsewhere a comma is text.

:func:`parse` gives the tree, :func:`read` the tree with the place of each part in the text, :func:`format` the text;
:func:`is_expression` tells expressions from plain prompts.
"""

from pipelines.grammar.errors import GrammarError, UnknownModelInTextError
from pipelines.grammar.reading import Reading, Span, parse, read
from pipelines.grammar.syntax import MAX_TEXT, is_expression
from pipelines.grammar.writing import format  # noqa: A004  the usual name for what undoes parse

__all__ = [
    "MAX_TEXT",
    "GrammarError",
    "Reading",
    "Span",
    "UnknownModelInTextError",
    "format",
    "is_expression",
    "parse",
    "read",
]
