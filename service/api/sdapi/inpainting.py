"""The picture and the mask of img2img, as the WebUI understands them. Not for the event loop's thread."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipelines.errors import InvalidInputError
from service.api.sdapi.answers import Finish
from service.api.sdapi.schemas import ImageToImage
from service.orders import Known
from service.pictures import decode_picture
from service.sources import Fit, Size, blend_of, flat, read_mask

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_FITS: Final[tuple[Fit, ...]] = ("stretch", "crop", "pad", "stretch")
_OPAQUE: Final = 255
_HALF: Final = 128


@dataclass(frozen=True, slots=True)
class Patch:
    """Where in a picture the sampled region belongs.

    Attributes:
        picture: The whole picture, (height, width, 3) RGB.
        box: The region.
        blend: (height, width) of the region, in 255ths: how much of what was sampled is seen.
    """

    picture: NDArray[np.uint8] = field(repr=False)
    box: Box
    blend: NDArray[np.uint8] = field(repr=False)

    def pasted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The whole picture with what was sampled in its place; where nothing is painted, every pixel is its own.

        Args:
            pixels: (…, …, 3) RGB of the region, at the size that was sampled.
        """
        left, top, right, bottom = self.box
        region = ImageOps.fit(Image.fromarray(pixels), (right - left, bottom - top), Image.Resampling.LANCZOS)
        whole = self.picture.copy()
        kept, share = whole[top:bottom, left:right], self.blend[..., None].astype(np.float32) / _OPAQUE
        kept[:] = np.rint(kept + share * (np.asarray(region, np.float32) - kept)).astype(np.uint8)
        return whole


class Sent:
    """The pictures of a request, read when their turn comes.

    Args:
        body: The request.
        max_pixels: Larger pictures are refused.
    """

    def __init__(self, body: ImageToImage, max_pixels: int) -> None:
        self._body, self._max_pixels = body, max_pixels
        self._patch: Patch | None = None

    def known(self) -> Known:
        """What sampling begins from; see :func:`prepare`, which tells what is raised too."""
        known, self._patch = prepare(self._body, self._max_pixels)
        return known

    @property
    def finish(self) -> Finish | None:
        """What puts a sampled region into the whole picture; None where all of it is sampled."""
        return None if self._patch is None else self._patch.pasted


def prepare(body: ImageToImage, max_pixels: int) -> tuple[Known, Patch | None]:
    """What sampling begins from, and where its result belongs if that is a region of the picture only.

    Args:
        body: The request.
        max_pixels: Larger pictures are refused.

    Raises:
        InvalidInputError: A picture cannot be read.
        PictureTooLargeError: A picture is too large.
    """
    image = flat(decode_picture(body.init_images[0], "init_images", max_pixels))
    fit = _FITS[body.resize_mode]
    if body.mask is None:
        return Known(image, None, fit, 0.0), None
    sent = decode_picture(body.mask, "mask", max_pixels)
    mask = painted(sent, image.size, whole_pixels=body.mask_round, invert=bool(body.inpainting_mask_invert))
    bounds = mask.getbbox()
    if not body.inpaint_full_res or bounds is None:
        return Known(image, mask, fit, body.mask_blur), None
    asked = (body.width, body.height) if body.width and body.height else None
    box = region_of(bounds, body.inpaint_full_res_padding, asked, image.size)
    part = mask.crop(box)
    patch = Patch(np.asarray(image), box, blend_of(np.asarray(part), body.mask_blur))
    # Blending happens once, in the whole picture, where a pixel is a pixel.
    return Known(image.crop(box), part, "pad", 0.0), patch


def painted(mask: Image.Image, size: Size, *, whole_pixels: bool, invert: bool) -> Image.Image:
    """A mask as the WebUI reads it, of mode L: white where the picture is painted anew.

    Args:
        mask: As it was sent; of one with transparent pixels the opaque ones are white.
        size: Of the picture, to which it is brought.
        whole_pixels: Whether grey becomes black or white.
        invert: Whether black is painted instead.

    Raises:
        InvalidInputError: It has other proportions than the picture.
    """
    alpha = mask.convert("RGBA").getchannel("A") if mask.has_transparency_data else None
    clear = alpha is not None and alpha.getextrema() != (_OPAQUE, _OPAQUE)
    white = alpha if alpha is not None and clear else mask.convert("L")
    if white.size != size:
        if not _alike(white.size, size):
            detail = (
                f"the mask has {white.width}×{white.height} pixels, the image {size[0]}×{size[1]}; both must have the "
                "same proportions"
            )
            raise InvalidInputError(detail, field=("mask",))
        white = white.resize(size, Image.Resampling.LANCZOS)
    if whole_pixels:
        white = Image.fromarray(np.where(np.asarray(white) > _HALF, _OPAQUE, 0).astype(np.uint8))
    return read_mask(white, "black" if invert else "white", size)


def _alike(one: Size, other: Size) -> bool:
    """Whether two sizes have the same proportions, but for a pixel of the smaller one."""
    small, large = sorted((one, other))
    return abs(small[0] * large[1] / large[0] - small[1]) <= 1 or abs(small[1] * large[0] / large[1] - small[0]) <= 1


def region_of(bounds: Box, padding: int, asked: Size | None, size: Size) -> Box:
    """The region of a picture that is sampled for a mask.

    Args:
        bounds: The smallest box around what is painted.
        padding: Pixels around it that are seen besides.
        asked: The size that the region is sampled at: it gets these proportions as far as the picture reaches.
        size: Of the picture.
    """
    (left, top, right, bottom), (width, height) = bounds, size
    left, top = max(0, left - padding), max(0, top - padding)
    right, bottom = min(width, right + padding), min(height, bottom + padding)
    if asked is not None:
        ratio = asked[0] / asked[1]
        left, right = _widened(left, right, round((bottom - top) * ratio), width)
        top, bottom = _widened(top, bottom, round((right - left) / ratio), height)
    return left, top, right, bottom


def _widened(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """A stretch of [0, limit) made as long as wanted, to both sides, if it is shorter and there is room."""
    length = min(max(length, high - low), limit)
    low = min(max(0, low - (length - (high - low)) // 2), limit - length)
    return low, low + length
