"""What makes a job, as JSON and one blob: with both, and no model loaded, the same plan is made again."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.card import Card
from pipelines.errors import PipelineError
from pipelines.params import SamplingParams
from pipelines.plan import Plan, make_plan
from service.durable.blobs import Array, UnreadableError, pack, unpack
from service.durable.trees import read_tree, write_tree
from service.engine.job import Ask, Source
from service.metadata import Origin
from service.pictures import ImageFormat

VERSION: Final = 1
_SOURCE: Final = "source"
_ARRAYS: Final = ("pixels", "mask", "blend")


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a job's pictures are wanted, and what is remembered of the picture that it began from.

    Attributes:
        image_format: Of its pictures.
        by_url: Whether answers tell where to fetch pictures instead of holding them.
        quality: Of the pictures' encoding, as :func:`service.pictures.encode_picture` has it.
        task: What its caller calls the job, in a dialect in which callers name their jobs; None in others.
        origin: The picture that the job began from, if there is one.
    """

    image_format: ImageFormat = ImageFormat.PNG
    by_url: bool = False
    quality: int | None = None
    task: str | None = None
    origin: Origin | None = None


class _Document(BaseModel):
    """The JSON; the expression stands in it as :func:`write_tree` has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    version: Literal[1] = VERSION
    expression: dict[str, Any]
    params: SamplingParams
    cards: dict[str, Card]
    on_canvas: bool
    retrace: bool
    ask: Ask
    wishes: Wishes


def write_request(plan: Plan, ask: Ask, wishes: Wishes, *, on_canvas: bool) -> str:
    """A job's request as JSON, all but the known picture.

    Args:
        plan: What it comes to.
        ask: What its caller wants besides.
        wishes: How its pictures are wanted.
        on_canvas: Whether there is a known picture.
    """
    return _Document(
        expression=write_tree(plan.expression),
        params=plan.params,
        cards=dict(plan.cards),
        on_canvas=on_canvas,
        retrace=plan.retrace,
        ask=ask,
        wishes=wishes,
    ).model_dump_json()


def read_request(written: str) -> tuple[Plan, Ask, Wishes]:
    """The plan, what the caller wants besides, and how the pictures are wanted.

    Raises:
        UnreadableError: It was written by another version, or this one refuses what it says.
    """
    try:
        told = _Document.model_validate_json(written)
        plan = make_plan(
            read_tree(told.expression), told.params, told.cards, on_canvas=told.on_canvas, retrace=told.retrace
        )
    except (ValidationError, PipelineError, KeyError) as error:
        raise UnreadableError("this request was written by another version of the service") from error
    return plan, told.ask, told.wishes


def write_source(source: Source) -> bytes:
    """A known picture as a blob."""
    told = {"width": source.width, "height": source.height, "retrace": source.retrace}
    arrays: dict[str, Array] = {name: array for name in _ARRAYS if (array := getattr(source, name)) is not None}
    return pack(_SOURCE, VERSION, told, arrays)


def read_source(blob: bytes) -> Source:
    """The known picture; :class:`UnreadableError` for what is none."""
    told, arrays = unpack(blob, _SOURCE, VERSION)
    try:
        return Source(arrays["pixels"], arrays.get("mask"), arrays.get("blend"), **told)
    except (KeyError, TypeError) as error:
        raise UnreadableError(f"this is no {_SOURCE}: {error}") from error
