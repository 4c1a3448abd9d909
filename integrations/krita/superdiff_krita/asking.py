"""What the person at the canvas wants → a request of the native API. No Krita, no Qt, no network."""

from __future__ import annotations

import base64
from typing import Any, Iterable, Mapping, NamedTuple

from . import png
from .geometry import Rect, SizeError, drawn_size, region, sizes_of
from .pixels import BGRA, cut, to_rgba


class Wishes(NamedTuple):
    """What the docker's fields say.

    Attributes:
        url: Of the service.
        expression: What to compose.
        seed: None to have one drawn.
        steps: None for the model's own.
        strength: None for the service's choice.
        from_canvas: Whether a picture without a selection begins from the canvas.
        key: For services that want one; empty for none.
    """

    url: str
    expression: str
    seed: int | None
    steps: int | None
    strength: float | None
    from_canvas: bool
    key: str = ""


class Snapshot(NamedTuple):
    """The document as it was when the picture was asked for.

    Attributes:
        canvas: Its size.
        bgra: What is seen of it.
        mask: The selection, a byte a pixel of the canvas; None where nothing is selected.
        selected: The smallest rectangle around the selection; None where nothing is selected.
    """

    canvas: Rect
    bgra: bytes
    mask: bytes | None
    selected: Rect | None


class Order(NamedTuple):
    """A request, and where its answer belongs.

    Attributes:
        body: Of POST /v1/superpose.
        place: The part of the canvas that the answer covers; the answer may be larger at its right and lower edges.
        mask: What of it is shown, a byte a pixel of ``place``; None for all.
    """

    body: dict[str, Any]
    place: Rect
    mask: bytes | None


def order(wishes: Wishes, snapshot: Snapshot, models: Iterable[Mapping[str, Any]]) -> Order:
    """The request for a picture: an inpainting of the selection, the canvas begun anew, or a picture of its size.

    Args:
        wishes: What is wanted.
        snapshot: Of the document.
        models: As /v1/models tells them.

    Raises:
        SizeError: The models have no picture of the size that is needed, or the selection lies beside the canvas.
    """
    sizes = sizes_of(models, wishes.expression)
    body: dict[str, Any] = {"expression": wishes.expression, "output_format": "png"}
    body.update({k: v for k, v in (("seed", wishes.seed), ("steps", wishes.steps)) if v is not None})
    canvas = snapshot.canvas
    if snapshot.mask is None or snapshot.selected is None:
        if wishes.from_canvas:
            body.update(_strength(wishes), image=_file(to_rgba(snapshot.bgra), canvas))
            return Order(body, canvas, None)
        size = drawn_size(canvas, sizes)
        body.update(width=size.width, height=size.height)
        return Order(body, canvas, None)
    selected = snapshot.selected.within(canvas)
    if not selected.width or not selected.height:
        raise SizeError("the selection lies beside the canvas")
    place = region(selected, canvas, sizes)
    mask = cut(snapshot.mask, canvas, place, 1)
    image = to_rgba(cut(snapshot.bgra, canvas, place, BGRA))
    body.update(_strength(wishes), image=_file(image, place), mask=_file(mask, place))
    return Order(body, place, mask)


def _strength(wishes: Wishes) -> dict[str, float]:
    return {} if wishes.strength is None else {"strength": wishes.strength}


def _file(pixels: bytes, size: Rect) -> str:
    return base64.b64encode(png.encode(pixels, size.width, size.height)).decode()
