"""Pictures inside the terminal, where it has a protocol for them.

References:
    The kitty graphics protocol; iTerm2's inline images protocol.
"""

import base64
import io
from collections.abc import Mapping
from typing import Final

_CHUNK: Final = 4096
_KITTY: Final = ("ghostty",)
_ITERM: Final = ("iTerm.app", "WezTerm", "mintty")


def protocol_of(environment: Mapping[str, str]) -> str | None:
    """What the terminal says of itself: "kitty", "iterm" or None. A multiplexer passes neither on."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term.startswith(("screen", "tmux", "dumb")) or environment.get("TMUX"):
        return None
    if "KITTY_WINDOW_ID" in environment or term == "xterm-kitty" or program in _KITTY:
        return "kitty"
    if program in _ITERM or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def inline(picture: bytes, protocol: str) -> str:
    """What makes the terminal show a picture.

    Args:
        picture: An encoded picture.
        protocol: As :func:`protocol_of` says.
    """
    data = _png(picture)
    text = base64.b64encode(data).decode()
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(data)}:{text}\x07"
    pieces = [text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK)]
    last = len(pieces) - 1
    heads = ["a=T,f=100," if i == 0 else "" for i in range(len(pieces))]
    return "".join(
        f"\x1b_G{head}m={int(i < last)};{piece}\x1b\\"
        for i, (head, piece) in enumerate(zip(heads, pieces, strict=True))
    )


def _png(picture: bytes) -> bytes:
    """The picture as a PNG, the only format that kitty takes."""
    from PIL import Image

    if picture.startswith(b"\x89PNG"):
        return picture
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(buffer, "png")
    return buffer.getvalue()
