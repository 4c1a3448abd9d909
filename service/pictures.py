"""Arrays to encoded pictures."""

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_OPTIONS: Final[dict[str, dict[str, object]]] = {
    "png": {"optimize": False},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
}


def encode_picture(pixels: NDArray[np.uint8], image_format: str) -> bytes:
    """Encode one picture.

    Args:
        pixels: (height, width, 3) RGB.
        image_format: "png", "jpeg" or "webp".
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **_OPTIONS[image_format])
    return buffer.getvalue()
