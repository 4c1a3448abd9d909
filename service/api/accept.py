"""Content negotiation: JSON, the bare picture, or the job's events."""

from collections.abc import Sequence
from email.message import Message
from http import HTTPStatus
from typing import Annotated, Final

from pydantic import WithJsonSchema
from starlette.exceptions import HTTPException

from service.pictures import ImageFormat

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
Lines = Annotated[list[str] | None, WithJsonSchema({"type": "string"})]
"""The lines of a header that is a list: any text is one, an empty one too, and what is not known there is ignored."""


def joined(lines: list[str] | None) -> str | None:
    """The lines of one header as the list that they are together (RFC 9110, section 5.3)."""
    return ", ".join(lines) if lines else None


def asynchronous(prefer: str | None) -> bool:
    """Whether a Prefer header holds respond-async (RFC 7240)."""
    return any(part.partition(";")[0].strip().lower() == "respond-async" for part in (prefer or "").split(","))


def liked_best(accept: str | None, offered: Sequence[str]) -> str:
    """Which of the media types offered an Accept header likes best; the first where it likes none of them."""
    liked, refused = _by_preference(accept or "*/*")
    open_to = [media_type for media_type in offered if media_type not in refused]
    for wanted in liked:
        for media_type in open_to:
            if wanted in {media_type, "*/*", f"{media_type.partition('/')[0]}/*"}:
                return media_type
    return offered[0]


def preferred(accept: str | None, asked: ImageFormat | None) -> str:
    """Which answer an Accept header likes best: JSON, EVENT_STREAM, or an :class:`ImageFormat`.

    Args:
        accept: The header; None where there is none.
        asked: The request's own output format, which ``image/*`` stands for; None for an answer without a picture.

    Raises:
        HTTPException: 406 where it accepts nothing that there is.
    """
    pictures = {} if asked is None else {image_format.media_type: image_format for image_format in ImageFormat}
    liked, refused = _by_preference(accept or "*/*")
    for media_type in liked:
        if media_type in {"*/*", "application/*", JSON} and JSON not in refused:
            return JSON
        if media_type in {"*/*", "image/*"} and asked is not None:
            return asked
        if media_type in {"*/*", "text/*", EVENT_STREAM} and EVENT_STREAM not in refused:
            return EVENT_STREAM
        if media_type in pictures:
            return pictures[media_type]
    offered = ", ".join([JSON, EVENT_STREAM, *pictures])
    raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, f"Accept names nothing that can be sent; there are {offered}")


def _by_preference(accept: str) -> tuple[list[str], set[str]]:
    """The media types of an Accept header, best first, and those that it refuses by q=0 (RFC 9110, section 12.5.1)."""
    ranked, refused = [], set()
    for part in accept.split(","):
        message = Message()
        message["Content-Type"] = part.strip()
        try:
            quality = float(str(message.get_param("q", "1")))
        except ValueError:
            quality = 0.0
        media_type = message.get_content_type() if "/" in part else ""
        if quality > 0:
            ranked.append((quality, media_type))
        else:
            refused.add(media_type)
    return [media_type for _, media_type in sorted(ranked, key=lambda entry: -entry[0])], refused
