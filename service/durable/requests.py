"""What makes a job, as JSON and one blob: with both, and no model loaded, the same plan is made again."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.card import Card
from pipelines.errors import PipelineError
from pipelines.params import SamplingParams
from pipelines.plan import Plan, make_plan
from service.durable.blobs import Array, UnreadableError, pack, unpack
from service.durable.trees import read_tree, write_tree
from service.engine.job import Ask, Source
from service.rendering import Rendering

VERSION: Final = 1
_SOURCE: Final = "source"
_ARRAYS: Final = ("pixels", "mask", "blend")


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
    rendering: Rendering


class _Wanted(BaseModel):
    """The part of the JSON that tells how the pictures are wanted."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rendering: Rendering


def write_request(plan: Plan, ask: Ask, rendering: Rendering, *, on_canvas: bool) -> str:
    """A job's request as JSON, all but the known picture.

    Args:
        plan: What it comes to.
        ask: What its caller wants besides.
        rendering: How its pictures are wanted.
        on_canvas: Whether there is a known picture.
    """
    return _Document(
        expression=write_tree(plan.expression),
        params=plan.params,
        cards=dict(plan.cards),
        on_canvas=on_canvas,
        retrace=plan.retrace,
        ask=ask,
        rendering=rendering,
    ).model_dump_json()


def read_request(written: str) -> tuple[Plan, Ask, Rendering]:
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
    return plan, told.ask, told.rendering


def read_rendering(written: str) -> Rendering:
    """How the pictures are wanted, alone: no plan is made; :class:`UnreadableError` as in :func:`read_request`."""
    try:
        return _Wanted.model_validate_json(written).rendering
    except ValidationError as error:
        raise UnreadableError("this request was written by another version of the service") from error


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
