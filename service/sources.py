"""The known picture of a request: brought to the size that is sampled, with its mask."""

import math
from collections.abc import Iterable
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipelines.card import Card
from pipelines.errors import InvalidInputError
from service.engine.job import Source
from service.pictures import banded

Fit = Literal["crop", "pad", "stretch"]
Painted = Literal["white", "black", "clear"]
"""Which part of a mask is painted anew: its white, its black, or its transparent pixels."""
Size = tuple[int, int]

_WHITE: Final = (255, 255, 255)
_OPAQUE: Final = 255
_HALF: Final = 128


def sampled_size(asked: Size, cards: Iterable[Card]) -> Size:
    """The size that is sampled for a picture of the size asked for: up to the next that every model has.

    A model of one size only (``multiple`` 0) leaves the size as it is; it refuses any other by itself.
    """
    multiple = math.lcm(*(card.multiple for card in cards if card.multiple))
    width, height = (-(-side // multiple) * multiple for side in asked)
    return width, height


def prepare_source(
    image: Image.Image, mask: Image.Image | None, asked: Size, sampled: Size, fit: Fit, feather: float
) -> Source:
    """Bring a picture and its mask to the size that is sampled.

    First to the size asked for, as ``fit`` says; then, where no model has just that size, its right and lower edges are
    repeated up to ``sampled``, to be cut off the answer again.

    Args:
        image: The picture; transparency becomes white.
        mask: Of mode L and the picture's size: white where it is painted anew, black where it is kept.
        asked: Of the answer.
        sampled: Of what is sampled, no smaller.
        fit: "crop" fills the size and cuts what stands over, "pad" fits all of it in and repeats the edges,
            "stretch" changes the picture's proportions.
        feather: Over how many pixels, inside of the mask's border, what is painted blends in.
    """
    picture = flat(image)
    pixels = _grown(np.asarray(_fitted(picture, asked, fit)), sampled)
    if mask is None:
        return Source(pixels, None, None, *asked)
    painted = np.asarray(_fitted(mask, asked, fit))
    return Source(pixels, _grown(painted, sampled), _grown(blend_of(painted, feather), sampled), *asked)


def read_mask(mask: Image.Image, painted: Painted, size: Size) -> Image.Image:
    """A mask of mode L, white where the picture is painted anew.

    Args:
        mask: As it was sent.
        painted: Which part of it is painted.
        size: Of the picture.

    Raises:
        InvalidInputError: It has another size; or it says by transparency what should be said by white, or the reverse.
    """
    if mask.size != size:
        detail = f"the mask has {_by(mask.size)} pixels, the image {_by(size)}; both must have the same size"
        raise InvalidInputError(detail, field=("mask",))
    if painted == "clear":
        if not mask.has_transparency_data:
            detail = "the mask has no transparent pixels: make it transparent where to repaint the image"
            raise InvalidInputError(detail, field=("mask",))
        return ImageOps.invert(mask.convert("RGBA").getchannel("A"))
    flat = mask.convert("L")
    clear = mask.has_transparency_data and _range(mask.convert("RGBA").getchannel("A"))[0] < _OPAQUE
    darkest, lightest = _range(flat)
    if clear and (darkest >= _HALF or darkest == lightest):
        lacks = "no dark pixel" if darkest >= _HALF else "a single colour"
        detail = (
            f"the mask is partly transparent and has {lacks}; transparency means nothing here: make it white where to "
            "repaint the image, black where to keep it"
        )
        raise InvalidInputError(detail, field=("mask",))
    return ImageOps.invert(flat) if painted == "black" else flat


def _range(image: Image.Image) -> tuple[float, float]:
    """The lowest and the highest value of a picture of one channel."""
    return cast("tuple[float, float]", image.getextrema())


def _by(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def blend_of(mask: NDArray[np.uint8], feather: float) -> NDArray[np.uint8]:
    """How much of what was painted is seen, in 255ths: 0 where the mask is, rising to its value over so many pixels.

    A pixel's distance is that to the nearest one outside of the mask, less half a pixel; what lies beyond the picture
    is neither in it nor out of it.
    """
    if feather <= 0 or mask.all():
        return mask
    from scipy import ndimage  # a third of a second, for masks alone

    inside = ndimage.distance_transform_edt(mask > 0) - 0.5
    return np.asarray(np.ceil(mask * np.clip(inside / feather, 0, 1)), np.uint8)


def flat(image: Image.Image) -> Image.Image:
    """RGB, over white where it is transparent."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    return banded(image, "RGB", _over_white)


def _over_white(image: Image.Image) -> Image.Image:
    over = image.convert("RGBA")
    ground = Image.new("RGBA", over.size, (*_WHITE, 255))
    return Image.alpha_composite(ground, over).convert("RGB")


def _fitted(image: Image.Image, size: Size, fit: Fit) -> Image.Image:
    if image.size == size:
        return image
    match fit:
        case "stretch":
            return image.resize(size, Image.Resampling.LANCZOS)
        case "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        case "pad":
            scale = min(size[0] / image.width, size[1] / image.height)
            within = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            inner = image.resize(within, Image.Resampling.LANCZOS)
            left, top = (size[0] - inner.width) // 2, (size[1] - inner.height) // 2
            around = ((top, size[1] - inner.height - top), (left, size[0] - inner.width - left))
            array = np.asarray(inner)
            return Image.fromarray(np.pad(array, (*around, (0, 0))[: array.ndim], mode="edge"))


def _grown(array: NDArray[np.generic], size: Size) -> NDArray:  # type: ignore[type-arg]
    """The array with its right and lower edges repeated up to a (width, height)."""
    below, right = size[1] - array.shape[0], size[0] - array.shape[1]
    return np.pad(array, ((0, below), (0, right), (0, 0))[: array.ndim], mode="edge")
