"""Raw pixels as bytes: cut out, turned from Krita's order into a file's, and cut along a selection."""

from __future__ import annotations

from .geometry import Rect

BGRA = 4
"""Bytes of a pixel of Krita's 8-bit RGB layers, and of QImage's Format_ARGB32 on little-endian machines."""
# A pixel that is selected at all is shown: how much of it is new, the service has blended already.
_OPAQUE = bytes([0] + [255] * 255)


def cut(pixels: bytes, size: Rect, part: Rect, channels: int) -> bytes:
    """The pixels of a part.

    Args:
        pixels: Of the whole, row by row.
        size: Of the whole.
        part: Inside of it.
        channels: Bytes of a pixel.
    """
    stride, left, length = size.width * channels, (part.x - size.x) * channels, part.width * channels
    first = part.y - size.y
    rows = (y * stride + left for y in range(first, first + part.height))
    return b"".join(pixels[row : row + length] for row in rows)


def to_rgba(bgra: bytes) -> bytes:
    """BGRA → RGBA; it is its own inverse."""
    swapped = bytearray(bgra)
    swapped[0::BGRA], swapped[2::BGRA] = bgra[2::BGRA], bgra[0::BGRA]
    return bytes(swapped)


def shown(bgra: bytes, mask: bytes) -> bytes:
    """The pixels, opaque where the mask is not 0 and transparent elsewhere.

    Args:
        bgra: A picture.
        mask: A byte a pixel, of the same size.
    """
    layer = bytearray(bgra)
    layer[3::BGRA] = mask.translate(_OPAQUE)
    return bytes(layer)
