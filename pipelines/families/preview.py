"""Cheap previews of latents: a linear map from a latent cell to its mean colour, fitted to the autoencoder."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_SAMPLES: Final = 4
_CELLS: Final = 16
_SCALES: Final = (1, 2, 4, 8)


def fit_colours(decode: Callable[[Tensor], Tensor], channels: int, factor: int, device: torch.device) -> Tensor:
    """Least squares from latent channels to the mean colour of a cell's pixels.

    Fitted on random latents of unit variance. They are sums of noise at several scales, because pictures have structure
    at all scales.

    Args:
        decode: (B, channels, h, w) latents to (B, 3, factor h, factor w) pictures in [0, 1].
        channels: Latent channels.
        factor: Pixels along one side of a cell.
        device: The device to decode on.

    Returns:
        (channels + 1, 3); the last row is the constant.
    """
    generator = torch.Generator().manual_seed(0)
    latents = torch.zeros(_SAMPLES, channels, _CELLS, _CELLS)
    for scale in _SCALES:
        coarse = torch.randn(_SAMPLES, channels, _CELLS // scale, _CELLS // scale, generator=generator)
        latents += functional.interpolate(coarse, (_CELLS, _CELLS), mode="nearest")
    latents = (latents / len(_SCALES) ** 0.5).to(device)
    colours = functional.avg_pool2d(decode(latents), factor)
    inputs = functional.pad(latents.movedim(1, -1).reshape(-1, channels), (0, 1), value=1.0)
    targets = colours.movedim(1, -1).reshape(-1, 3)
    fitted: Tensor = torch.linalg.lstsq(inputs.float(), targets.float()).solution
    return fitted


def apply_colours(colours: Tensor, z: Tensor) -> Tensor:
    """(B, channels, h, w) latents to (B, 3, h, w) pictures in [0, 1]."""
    return (torch.einsum("bchw,ck->bkhw", z.float(), colours[:-1]) + colours[-1][:, None, None]).clamp(0, 1)
