"""The types that fields of the wire share, with their bounds."""

import secrets
from dataclasses import fields
from typing import Annotated, Any, Final

from pydantic import Field, Strict

from pipelines.params import SEED_LIMIT

PROMPT_LENGTH: Final = 4000
NAME_LENGTH: Final = 200
NATS: Final = 1e4
"""The largest log prior odds, lift or weight of a term."""
LORAS: Final = 8
MOST_PLACES: Final = 20
"""Fields at fault that one refusal names; further ones are only counted."""
_SIDE: Final = 4096

# As JSON has them: neither "3" nor true is a number, and "yes" is no truth value.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Truth = Annotated[bool, Strict()]

Text = Annotated[str, Field(max_length=PROMPT_LENGTH)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)]
Side = Annotated[
    Whole | None,
    Field(
        ge=8,
        le=_SIDE,
        description="In pixels, a multiple of `multiple` in /v1/models. Default: the image's, else the model's. The "
        "service limits width × height × num_images × candidates × particles.",
    ),
]
Temperature = Annotated[
    Real,
    Field(ge=0, le=1e6, allow_inf_nan=False, description="T in κ = softmax(T log q + weight); 1 samples the mixture."),
]
Sharpness = Annotated[
    Real,
    Field(
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="λ of the soft AND, per nat: large values follow the least likely term, small ones the average.",
    ),
]

Scale = Annotated[
    Real,
    Field(
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="γ of NOT, its strength, which the NOTs of a case of XOR share; 0 gives the unconditional density.",
    ),
]


def default(kind: type[Any], name: str) -> Any:
    """The default of a dataclass's field: what the science says once is not said again here."""
    return next(field.default for field in fields(kind) if field.name == name)


def drawn_seed(seed: int | None) -> int:
    """The seed given, or one drawn now."""
    return secrets.randbelow(SEED_LIMIT) if seed is None else seed


def within_sentence(message: str) -> str:
    """A message of pydantic's as part of a sentence: it begins with a small letter."""
    return message[:1].lower() + message[1:]
