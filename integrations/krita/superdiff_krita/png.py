"""PNG files of raw pixels, by the standard library alone."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bytes of a pixel → PNG's colour type: grey, RGB, RGBA.
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}


def encode(pixels: bytes, width: int, height: int) -> bytes:
    """A PNG file of 8-bit pixels.

    Args:
        pixels: Row by row from the top, 1 (grey), 3 (RGB) or 4 (RGBA) bytes a pixel.
        width: In pixels.
        height: In pixels.

    Raises:
        ValueError: There are not so many pixels.
    """
    channels, rest = divmod(len(pixels), max(1, width * height))
    if rest or channels not in _COLOUR_TYPES:
        raise ValueError(f"{len(pixels)} bytes are not {width}×{height} pixels of 1, 3 or 4 bytes")
    stride = width * channels
    # Each row begins with the number of its filter; 0 is none.
    rows = b"".join(b"\0" + pixels[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
