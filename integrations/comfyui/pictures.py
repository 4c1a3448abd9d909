"""ComfyUI's tensors ↔ picture files in base64.

An IMAGE is (B, H, W, C), a MASK (B, H, W) or (H, W); both are floats from 0 to 1.
"""

from __future__ import annotations

import base64
import io
from typing import Sequence

import numpy as np
import torch
from PIL import Image


def write_image(image: torch.Tensor) -> str:
    """One picture (H, W, C) as a PNG in base64."""
    levels = (image.detach().cpu().float().clamp(0, 1) * 255).round()
    return _file(Image.fromarray(levels.numpy().astype(np.uint8)))


def write_masks(mask: torch.Tensor, image: torch.Tensor) -> list[str]:
    """A mask for each picture of an IMAGE, of its size, as PNGs in base64: white is painted anew.

    As ComfyUI's own nodes do, a mask of another size is stretched, and where there are fewer masks than pictures the
    last one stands for the rest.

    Args:
        mask: The MASK.
        image: The IMAGE.

    Raises:
        ValueError: A mask is black: nothing would be painted.
    """
    count, height, width = image.shape[:3]
    masks = mask.detach().cpu().float().reshape(-1, 1, *mask.shape[-2:])
    if masks.shape[-2:] != (height, width):
        masks = torch.nn.functional.interpolate(masks, (height, width), mode="bilinear")
    levels = (masks[:, 0].clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    files = []
    for i in range(count):
        one = levels[min(i, len(levels) - 1)]
        if not one.any():
            raise ValueError(f"mask {i + 1} is black everywhere: make white what is to be painted anew")
        files.append(_file(Image.fromarray(one)))
    return files


def read_images(files: Sequence[bytes]) -> torch.Tensor:
    """Picture files of one size as an IMAGE."""
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255 for data in files]
    return torch.from_numpy(np.stack(pictures))


def _file(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
