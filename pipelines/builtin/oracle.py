"""Reads a picture of shapes back into words: the independent judge of what the builtin models drew.

It knows nothing of any network. A pixel belongs to the nearest colour of the palette or to the ground; a connected
patch of one colour is a thing; its kind is read from three numbers that neither size nor tilt change:

    elongation largest / smallest second moment            below 1.23 for all four kinds, 1 in the limit
    solidity   area / area of the convex hull              star 0.5–0.6, the others above 0.83
    roundness  area / area of the circle about the centroid    circle 1, square 2/π, triangle 0.41

Shapes never touch, so patches that do are parts of something two-coloured, and neither is read as a shape.
"""

from dataclasses import dataclass
from functools import cache
from math import pi
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from pipelines.builtin.scenes import COLOURS, MAX_OBJECTS, SHAPES

_GROUND_LEVELS: Final = (200, 228, 255)
_NEIGHBOURS: Final = np.ones((3, 3), dtype=bool)
_SPECK: Final = 36
_LARGEST: Final = 700
_LONGEST: Final = 1.3
_STAR_SOLIDITY: Final = (0.42, 0.70)
_SOLID: Final = 0.79
_ROUNDNESS: Final = {"triangle": (0.34, 0.54), "square": (0.54, 0.77), "circle": (0.80, 1.1)}


@dataclass(frozen=True, slots=True)
class Found:
    """One patch that was found: its colour, its kind (None where it looks like no shape), its area in pixels."""

    colour: str
    shape: str | None
    area: int


def read_picture(picture: NDArray[np.uint8]) -> list[Found]:
    """Every patch of a picture, largest first.

    Args:
        picture: (height, width, 3) RGB.
    """
    labels = _nearest_colour(picture)
    masks: list[tuple[str, NDArray[np.bool_]]] = []
    for index, colour in enumerate(COLOURS):
        patches, count = ndimage.label(labels == index, structure=_NEIGHBOURS)
        masks += [(colour, mask) for k in range(1, count + 1) if (mask := patches == k).sum() >= _SPECK]
    covered = sum((mask.astype(int) for _, mask in masks), np.zeros(labels.shape, int))
    found = []
    for colour, mask in masks:
        alone = not (ndimage.binary_dilation(mask, _NEIGHBOURS) & (covered > mask)).any()
        found.append(Found(colour, _kind(mask) if alone else None, int(mask.sum())))
    return sorted(found, key=lambda patch: -patch.area)


def names(found: list[Found]) -> set[str]:
    """What is well formed in a picture, as captions call it: {"red circle", …}."""
    return {f"{patch.colour} {patch.shape}" for patch in found if patch.shape}


def holds(found: list[Found], caption: str) -> bool:
    """Whether the picture shows what a caption of fully named things says, each at least as often as it is named."""
    wanted = [phrase.removeprefix("a ") for phrase in caption.split(" and ")]
    drawn = [f"{patch.colour} {patch.shape}" for patch in found]
    return all(drawn.count(name) >= wanted.count(name) for name in wanted)


def well_formed(found: list[Found]) -> bool:
    """Whether the picture is a scene: one to three patches, each of them a shape."""
    return 1 <= len(found) <= MAX_OBJECTS and all(patch.shape is not None for patch in found)


def shapes_of(found: list[Found]) -> set[str]:
    """The kinds of shapes in a picture, of {"circle", "square", "triangle", "star"}."""
    return {patch.shape for patch in found if patch.shape in SHAPES}


@cache
def _palette() -> NDArray[np.float32]:
    """The palette's colours, then pale ones that stand for the ground."""
    levels = np.array(_GROUND_LEVELS)
    pale = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    # A pale colour is near grey: without this, bright yellow would be taken for ground.
    pale = pale[np.ptp(pale, axis=1) <= 30]
    return np.concatenate([np.array(list(COLOURS.values())), pale]).astype(np.float32)


def _nearest_colour(picture: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The palette index of every pixel; indices past the colours are ground."""
    distance = np.square(picture[:, :, None].astype(np.float32) - _palette()).sum(-1)
    nearest: NDArray[np.intp] = distance.argmin(-1)
    return nearest


def _kind(mask: NDArray[np.bool_]) -> str | None:
    """The shape of a patch, None for one that is like none of them."""
    area = float(mask.sum())
    if area > _LARGEST:
        return None
    ys, xs = np.nonzero(mask)
    least, most = np.linalg.eigvalsh(np.cov(np.stack([xs, ys])))
    if most > _LONGEST * least:
        return None
    # Corners of the pixels, so that the hull's area counts whole pixels like the patch's own.
    corners = np.concatenate([np.stack([xs + dx, ys + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    try:
        hull = ConvexHull(corners)
    except QhullError:
        return None
    solidity = area / hull.volume
    if _STAR_SOLIDITY[0] <= solidity <= _STAR_SOLIDITY[1]:
        return "star"
    if solidity < _SOLID:
        return None
    centre = np.array([xs.mean() + 0.5, ys.mean() + 0.5])
    reach = np.linalg.norm(corners[hull.vertices] - centre, axis=1).max()
    roundness = area / (pi * (reach - 0.25) ** 2)
    return next((shape for shape, (low, high) in _ROUNDNESS.items() if low <= roundness < high), None)
