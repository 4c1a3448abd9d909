"""The fetched pictures as tensors, and the same things placed anew on pale grounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipelines.builtin.emoji.names import LEFT_AS_DRAWN, NAMES, STYLES

DATA_FOLDER: Final = Path("runs/emoji/data")
SIZE: Final = 64
_SCALES: Final = (0.9, 1.06)
_DARKEST: Final = 0.9


def picture_file(data: Path, style: str, name: str) -> Path:
    """Where the picture of a thing in a style lies."""
    return data / "pictures" / style / f"{name.replace(' ', '-')}.png"


def read_pictures(data: Path, names: Sequence[str] = tuple(NAMES), styles: Sequence[str] = STYLES) -> Tensor:
    """The pictures, a name's styles together: (names × styles, 4, 64, 64) in [0, 1], colours times opacity."""
    stack = []
    for name in names:
        for style in styles:
            with Image.open(picture_file(data, style, name)) as image:
                stack.append(np.asarray(image.convert("RGBA"), dtype=np.float32) / 255)
    pictures = torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)
    return torch.cat([pictures[:, :3] * pictures[:, 3:], pictures[:, 3:]], dim=1)


def on_ground(pictures: Tensor, grounds: Tensor) -> Tensor:
    """Premultiplied pictures (n, 4, h, w) over grounds (n, 3) or (3,) in [0, 1] → pixels (n, 3, h, w) in [−1, 1]."""
    return (pictures[:, :3] + (1 - pictures[:, 3:]) * grounds[..., None, None]).clamp(0, 1) * 2 - 1


def may_be_mirrored(names: Sequence[str] = tuple(NAMES), styles: Sequence[str] = STYLES) -> Tensor:
    """(names × styles,) bool, in the order of :func:`read_pictures`."""
    return torch.tensor([name not in LEFT_AS_DRAWN for name in names for _ in styles])


class Placing(NamedTuple):
    """How far and how often things are placed otherwise than they were drawn.

    Attributes:
        moved: The share that is shifted and, half of it, scaled.
        reach: Of shifts, in whole pixels, each way.
        mirrored: The share that is mirrored, of what may be.
        pale: The share on a pale ground; the others are on white.
    """

    moved: float
    reach: int
    mirrored: float
    pale: float


FREELY: Final = Placing(moved=1.0, reach=2, mirrored=0.5, pale=0.5)
GENTLY: Final = Placing(moved=0.25, reach=1, mirrored=0.25, pale=0.3)
"""Mostly as drawn: a denoiser that has only minutes to learn each picture learns it sharply in one place first."""


def place(pictures: Tensor, mirrored: Tensor, rng: np.random.Generator, placing: Placing = FREELY) -> Tensor:
    """The things placed anew: pixels (n, 3, 64, 64) in [−1, 1].

    Shifts are of whole pixels, scales from 0.9 to 1.06, pale grounds of 0.9 or more in each colour.

    Args:
        pictures: (n, 4, 64, 64), premultiplied.
        mirrored: (n,) bool, which may be mirrored.
        rng: Draws all that is random.
        placing: How far and how often.
    """
    n = len(pictures)
    moves = rng.random(n) < placing.moved
    # affine_grid's unit is half a picture.
    shifts = np.where(moves[:, None], rng.integers(-placing.reach, placing.reach + 1, size=(n, 2)), 0) * 2 / SIZE
    scales = np.where(moves & (rng.random(n) < 0.5), rng.uniform(*_SCALES, size=n), 1.0)
    signs = np.where(mirrored.numpy() & (rng.random(n) < placing.mirrored), -1.0, 1.0)
    # grid_sample asks where each pixel comes from, so what is to grow is divided by its scale.
    affine = np.zeros((n, 2, 3), dtype=np.float32)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = signs / scales, 1 / scales, shifts
    grid = functional.affine_grid(torch.from_numpy(affine), [n, 4, SIZE, SIZE], align_corners=False)
    placed = functional.grid_sample(pictures, grid, mode="bicubic", align_corners=False).clamp(0, 1)
    pale = rng.uniform(_DARKEST, 1, size=(n, 3))
    grounds = np.where(rng.random((n, 1)) < placing.pale, pale, 1.0).astype(np.float32)
    return on_ground(placed, torch.from_numpy(grounds))
