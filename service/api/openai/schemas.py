"""What requests of the dialect may hold, and what its answers and events hold."""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from pipelines.grammar import MAX_TEXT
from service.pictures import ImageFormat
from service.schemas import habits
from service.schemas.closed import Closed
from service.schemas.fields import Name, Truth, Whole
from service.schemas.trees import fault

_MAX_IMAGES: Final = 10
_MAX_PARTIAL: Final = 3
_LOSSLESS: Final = 100
_AUTO: Final = "auto"
_SIZE: Final = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)


def _sides(value: object) -> tuple[int, int] | None:
    """("64x48") → (64, 48); None for "auto"."""
    if value is None or value == _AUTO:
        return None
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise PydanticCustomError("size", 'must be "auto" or WIDTHxHEIGHT in pixels, such as "64x64"')
    return int(found[1]), int(found[2])


Size = Annotated[
    tuple[int, int] | None,
    BeforeValidator(_sides),
    WithJsonSchema({"type": "string", "pattern": f"^(auto|{_SIZE.pattern})$", "default": _AUTO}),
    Field(description="\"auto\": the picture's that is edited, else the model's own."),
]
Ignored = Annotated[Any, Field(description="Accepted and ignored.")]


class ImageRequest(Closed):
    """What both endpoints share. A field that is null is as if it were absent."""

    habits = habits.IMAGES

    prompt: Annotated[
        str,
        Field(
            max_length=MAX_TEXT,
            description='A prompt, or an expression over prompts, such as "a cat" AND ("a dog" OR "a fox"): it is one '
            "where an operator word stands in upper case outside double quotation marks.",
        ),
    ]
    model: Annotated[
        Name | None, Field(description="A name from /v1/models, of the prompts that name none; absent: the first.")
    ] = None
    n: Annotated[Whole, Field(ge=1, le=_MAX_IMAGES, description="Pictures.")] = 1
    size: Size = None
    response_format: Annotated[
        Literal["b64_json", "url"], Field(description="Pictures inside the answer, or where to fetch them for a while.")
    ] = "b64_json"
    output_format: ImageFormat = ImageFormat.PNG
    output_compression: Annotated[
        Whole | None,
        Field(ge=0, le=_LOSSLESS, description="Quality of JPEG and WebP; absent: nearly lossless. PNG has only 100."),
    ] = None
    stream: Annotated[Truth, Field(description="Server-sent events instead of one answer; for one picture.")] = False
    partial_images: Annotated[
        Whole, Field(ge=0, le=_MAX_PARTIAL, description="At most how many previews a stream shows on the way.")
    ] = 0
    superdiff: Annotated[
        dict[str, Any],
        Field(
            description="Any field of POST /v1/superpose that has no name in this dialect: expression (instead of the "
            "prompt), seed, steps, guidance_scale, candidates, particles, negative_prompt, kernel, strength and more."
        ),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    user: Annotated[
        str | None, Field(max_length=200, description="Groups the caller's jobs, where X-Client-Id does not.")
    ] = None
    background: Ignored = None
    input_fidelity: Ignored = None
    moderation: Ignored = None
    quality: Ignored = None
    safety_identifier: Ignored = None
    style: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: v for name, v in value.items() if v is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        lossless = self.output_format is ImageFormat.PNG
        wrong = {
            ("output_compression", "png is lossless; take jpeg or webp to compress"): lossless
            and self.output_compression not in {None, _LOSSLESS},
            ("n", "a stream carries one picture"): self.stream and self.n > 1,
            ("response_format", "a stream carries pictures as b64_json"): self.stream and self.response_format == "url",
            ("partial_images", "they need stream"): self.partial_images and not self.stream,
        }
        for (name, detail), is_wrong in wrong.items():
            if is_wrong:
                raise fault((name,), detail)
        return self


class InputDetails(BaseModel):
    """Tokens of a request; nothing is counted."""

    text_tokens: int = 0
    image_tokens: int = 0


class Usage(BaseModel):
    """What a request came to. The service counts no tokens: output_tokens are the network rows that were computed."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    total_tokens: int


class GeneratedImage(BaseModel):
    """One picture: inside the answer, or where to fetch it."""

    b64_json: str | None = None
    url: str | None = None


class Look(BaseModel):
    """How a picture is. The service has one quality, and its pictures have no transparency."""

    size: Annotated[str, Field(description="WIDTHxHEIGHT in pixels.")]
    output_format: ImageFormat
    quality: Literal["high"] = "high"
    background: Literal["opaque"] = "opaque"


class GeneratedImages(Look):
    """The answer to a completed request."""

    created: int
    data: list[GeneratedImage]
    usage: Usage


class PartialImage(Look):
    """The picture as it is on the way, which may be small: ``size`` is its own."""

    type: str
    created_at: int
    partial_image_index: int
    b64_json: str


class Completed(Look):
    """The finished picture."""

    type: str
    created_at: int
    b64_json: str
    usage: Usage


class Error(BaseModel):
    """Why a request was refused or failed."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="The field at fault, such as superdiff.steps.")]
    code: str
    column: Annotated[
        int | None, Field(description="Where in an expression's text, in characters; the first is 1.")
    ] = None


class ErrorResponse(BaseModel):
    """The body of an answer that is an error."""

    error: Error
