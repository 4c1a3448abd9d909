"""Pictures in and out: arrays to encoded pictures, and what clients send to arrays."""

import base64
import binascii
import io
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from pipelines.errors import InvalidInputError

_OPTIONS: Final[dict[str, dict[str, object]]] = {
    "png": {"optimize": False},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
}
_DEEPEST: Final = 2**16 - 1
# Characters of base64 that are decoded at a time, of which four make three bytes: a few milliseconds, in which no other
# thread runs.
_WINDOW: Final = 1 << 20
# Rows of a picture.
_BAND: Final = 64
_READ: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_DATA_URI: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+(;[\w.+=-]+)*;base64,", re.ASCII)


# The ends of a diverging scale around white: blue below 0, red above (ColorBrewer's RdBu, readable without telling red
# from green).
_BELOW: Final = (33, 102, 172)
_ABOVE: Final = (178, 24, 43)
_MAP_SIDE: Final = 64


class ImageFormat(StrEnum):
    """The picture formats that a request may ask for."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """Its name in Accept and Content-Type."""
        return f"image/{self.value}"


class _UnreadableError(ValueError):
    """A picture that has no eight bits a channel."""


class PictureTooLargeError(InvalidInputError):
    """A picture of more pixels than the service takes."""


def encode_picture(
    pixels: NDArray[np.uint8],
    image_format: str,
    text: Mapping[str, str] | None = None,
    quality: int | None = None,
) -> bytes:
    """Encode one picture.

    Args:
        pixels: (height, width, 3) RGB.
        image_format: "png", "jpeg" or "webp".
        text: What a PNG says of itself, by keyword: tEXt chunks, iTXt where Latin-1 does not suffice. Other formats
            have no place for it.
        quality: Of JPEG and WebP, 0 to 100; None for nearly lossless. PNG is lossless and has none.
    """
    options = _OPTIONS[image_format] if quality is None else {**_OPTIONS[image_format], "quality": quality}
    if text and image_format == ImageFormat.PNG:
        chunks = PngImagePlugin.PngInfo()
        for keyword, value in text.items():
            chunks.add_text(keyword, value)
        options = options | {"pnginfo": chunks}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def diverging_picture(cells: NDArray[np.floating], scale: float) -> NDArray[np.uint8]:
    """Numbers as colours: white at 0, red at ``scale`` and above, blue at ``-scale`` and below.

    Args:
        cells: (height, width) finite numbers.
        scale: The number of the full colours; 0 for cells that are all 0.

    Returns:
        (height, width, 3) RGB; every cell is a square of pixels, as many as make the shorter side at least 64.
    """
    share = np.clip(cells / scale, -1, 1) if scale > 0 else np.zeros_like(cells)
    ends = np.where(share[..., None] < 0, np.array(_BELOW), np.array(_ABOVE))
    colours = np.asarray(np.rint(255 + np.abs(share)[..., None] * (ends - 255)), np.uint8)
    side = -(-_MAP_SIDE // min(cells.shape))
    return colours.repeat(side, axis=0).repeat(side, axis=1)


def decode_picture(sent: str | bytes, field: str, max_pixels: int) -> Image.Image:
    """A picture that a client sent, upright as its EXIF orientation says, of mode L, RGB or RGBA.

    Args:
        sent: A file, or a file in base64, bare or as a data: URI.
        field: Where it stood in the request.
        max_pixels: Larger ones are refused before they are decompressed.

    Raises:
        InvalidInputError: Not base64, not a picture, or truncated.
        PictureTooLargeError: Too large.
    """
    return _plain_picture(sent, field, max_pixels)[0]


def picture_text(sent: str | bytes, field: str, max_pixels: int) -> dict[str, str]:
    """What a PNG that a client sent says of itself, by keyword; other formats say nothing.

    Args:
        sent: As for :func:`decode_picture`, which tells also what is raised.
        field: Where it stood in the request.
        max_pixels: Larger ones are refused before they are decompressed.
    """
    return _plain_picture(sent, field, max_pixels)[1]


def _plain_picture(sent: str | bytes, field: str, max_pixels: int) -> tuple[Image.Image, dict[str, str]]:
    """A picture and its text chunks."""
    data = picture_file(sent, field)
    try:
        picture = Image.open(io.BytesIO(data), formats=_READ)
        del data  # the picture has it, until it is decoded
        if picture.width * picture.height <= max_pixels:
            picture.load()
            chunks = picture.text if isinstance(picture, PngImagePlugin.PngImageFile) else {}
            told = {str(keyword): str(value) for keyword, value in chunks.items()}
            ImageOps.exif_transpose(picture, in_place=True)
            return _plain(picture), told
    except UnidentifiedImageError:
        raise InvalidInputError(f"{field} must be one of {', '.join(_READ)}", field=(field,)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow's own bound, which lies above any that is sensible here.
        detail = f"{field} has too many pixels; this service reads {max_pixels} (max_image_pixels)"
        raise PictureTooLargeError(detail, field=(field,)) from None
    except _UnreadableError as error:
        raise InvalidInputError(f"{field} cannot be read: {error}", field=(field,)) from None
    except Exception as error:
        # What a broken file makes its reader raise is anybody's guess: broken EXIF alone raises four kinds.
        raise InvalidInputError(f"{field} cannot be read: its file is broken or cut off", field=(field,)) from error
    detail = f"{field} has {picture.width}×{picture.height} pixels; this service reads {max_pixels} (max_image_pixels)"
    raise PictureTooLargeError(detail, field=(field,))


def picture_file(sent: str | bytes, field: str) -> bytes:
    """The file that a client sent; see :func:`decode_picture`."""
    return sent if isinstance(sent, bytes) else _from_base64(sent, field)


def _from_base64(text: str, field: str) -> bytes:
    if text.startswith(("http:", "https:", "file:")):
        raise InvalidInputError(f"{field} must be the picture itself in base64; URLs are not fetched", field=(field,))
    start = _DATA_URI.match(text)
    first, data = start.end() if start else 0, io.BytesIO()
    try:
        for at in range(first, len(text), _WINDOW):
            part = text[at : at + _WINDOW]
            # Padding may only end the whole text. One more sign makes an earlier window with padding invalid too.
            data.write(base64.b64decode(part + "=" * ("=" in part and at + _WINDOW < len(text)), validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(f"{field} is not base64: {error}", field=(field,)) from error
    return data.getvalue()


def _plain(picture: Image.Image) -> Image.Image:
    """Eight bits a channel; _UnreadableError for what has no such picture."""
    if picture.mode == "F":
        raise _UnreadableError("its pixels are floating-point numbers")
    if picture.mode.startswith("I"):
        return banded(picture, "L", _shallow)
    mode = "L" if picture.mode in {"1", "L"} else "RGBA" if picture.has_transparency_data else "RGB"
    # Converting copies, also to the same mode.
    return picture if picture.mode == mode else picture.convert(mode)


def _shallow(picture: Image.Image) -> Image.Image:
    """The upper eight of sixteen bits."""
    deep = np.asarray(picture).astype(np.int64).clip(0, _DEEPEST)
    return Image.fromarray((deep * 255 // _DEEPEST).astype(np.uint8))


def banded(picture: Image.Image, mode: str, work: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A picture made band by band, which takes little memory besides both, and lets other threads run between.

    Args:
        picture: The picture.
        mode: Of the result.
        work: Makes a band of the result of one of the picture; pixels of different rows do not depend on one another.
    """
    made = Image.new(mode, picture.size)
    for top in range(0, picture.height, _BAND):
        box = (0, top, picture.width, min(top + _BAND, picture.height))
        made.paste(work(picture.crop(box)), box)
    return made
