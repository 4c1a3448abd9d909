"""Content negotiation: JSON or the bare picture."""

from email.message import Message
from http import HTTPStatus

from starlette.exceptions import HTTPException

from service.schemas import ImageFormat


def wants_picture(accept: str | None, asked: ImageFormat) -> ImageFormat | None:
    """Which bare picture an Accept header prefers to JSON, None for JSON.

    Args:
        accept: The header; None where there is none.
        asked: The request's own output format, which ``image/*`` stands for.

    Raises:
        HTTPException: 406 where it accepts nothing that there is.
    """
    for media_type in _by_preference(accept or "*/*"):
        if media_type in {"*/*", "application/*", "application/json"}:
            return None
        if media_type == "image/*":
            return asked
        for offered in ImageFormat:
            if media_type == offered.media_type:
                return offered
    there_are = ", ".join(["application/json", *(each.media_type for each in ImageFormat)])
    raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, f"Accept names nothing that can be sent; there are {there_are}")


def _by_preference(accept: str) -> list[str]:
    """The media types of an Accept header, best first, those with q=0 left out (RFC 9110, section 12.5.1)."""
    ranked = []
    for part in accept.split(","):
        message = Message()
        message["Content-Type"] = part.strip()
        try:
            quality = float(str(message.get_param("q", "1")))
        except ValueError:
            quality = 0.0
        if quality > 0:
            ranked.append((quality, message.get_content_type() if "/" in part else ""))
    return [media_type for _, media_type in sorted(ranked, key=lambda entry: -entry[0])]
