"""What a running job tells those who follow it from another process, as one blob."""

from collections.abc import Sequence
from typing import Final

from service.durable.blobs import Array, UnreadableError, pack, unpack
from service.durable.trajectories import read_points, write_points
from service.engine.events import Event
from service.engine.job import Point, Preview

VERSION: Final = 1
_KIND: Final = "progress"
_POINT: Final = "progress"
_PREVIEW: Final = "preview"

Told = tuple[int, str, Point | Preview]
"""An event's id, its kind and what it carries."""


def write_progress(events: Sequence[Event]) -> bytes:
    """The newest events of a job as a blob; those that carry neither a step nor a preview are left out."""
    arrays: dict[str, Array] = {}
    told = {}
    for event in events:
        match event.payload:
            case Point() as point:
                arrays |= write_points([point])
                told[_POINT] = {"id": event.id}
            case Preview(step=step, pictures=pictures):
                arrays[_PREVIEW] = pictures
                told[_PREVIEW] = {"id": event.id, "step": step}
    return pack(_KIND, VERSION, told, arrays)


def read_progress(blob: bytes) -> list[Told]:
    """The events, oldest first; :class:`UnreadableError` for what is none."""
    told, arrays = unpack(blob, _KIND, VERSION)
    events: list[Told] = []
    try:
        if _POINT in told:
            (point,) = read_points(arrays)
            events.append((told[_POINT]["id"], _POINT, point))
        if _PREVIEW in told:
            preview = Preview(told[_PREVIEW]["step"], arrays[_PREVIEW])
            events.append((told[_PREVIEW]["id"], _PREVIEW, preview))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"this is no {_KIND}: {error}") from error
    return sorted(events, key=lambda event: event[0])
