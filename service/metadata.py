"""What a picture's file says of itself: the request that draws this very picture again, alone.

A PNG carries it as JSON in a text chunk named "superdiff":

    {"product": "superdiff-serve", "version": "0.1.0", "path": "/v1/superpose",
     "request": {"expression": "…", "seed": 7, "num_images": 1, …},
     "source": {"image_sha256": "…", "mask_sha256": null, "painted": "white"}}

``request`` is a body of ``path`` with every parameter written out. ``source`` stands where the picture began from
another: the digests of the files that must be sent along as ``image`` and ``mask``; their pixels are not kept.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Final

from PIL import Image

from pipelines import grammar
from pipelines.composition import Expression
from pipelines.params import image_seed
from pipelines.plan import Plan
from service.expressions import tree_of
from service.sources import Fit, Painted

KEY: Final = "superdiff"
"""The name of the text chunk."""
_PRODUCT: Final = "superdiff-serve"
_PATH: Final = "/v1/superpose"
_PARAMS: Final = (
    "steps",
    "guidance_scale",
    "guidance_start",
    "negative_prompt",
    "kernel",
    "strength",
    "candidates",
    "select",
    "particles",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """The picture that a request began from, without its pixels.

    Attributes:
        image_sha256: Of the file, in hexadecimal; None where a dialect made the picture from what was sent, so that
            there is no file to send again.
        mask_sha256: Likewise; None without a mask.
        painted: Which part of the mask was painted.
        fit: How both came to the size asked for.
        feather: Over how many pixels painting blended in.
    """

    image_sha256: str | None
    mask_sha256: str | None
    painted: Painted
    fit: Fit
    feather: float


def digest(file: bytes) -> str:
    """The digest of a file by which a source is known again."""
    return hashlib.sha256(file).hexdigest()


def recipe(plan: Plan, image: int, size: tuple[int, int] | None = None, origin: Origin | None = None) -> dict[str, Any]:
    """The request that draws one picture of a plan again, alone.

    A picture depends on its own seed, candidates and particles only, whatever else its request drew.

    Args:
        plan: Of the request.
        image: Which picture of it; the first is 0.
        size: (width, height) of the picture where it is not the size that was sampled.
        origin: The picture that the request began from.
    """
    params = plan.params
    width, height = size or (plan.width, plan.height)
    request: dict[str, Any] = {
        "expression": _written(plan.expression),
        "seed": image_seed(params.seed, image),
        "num_images": 1,
        "width": width,
        "height": height,
        **{name: getattr(params, name) for name in _PARAMS},
    }
    told: dict[str, Any] = {"product": _PRODUCT, "version": version(_PRODUCT), "path": _PATH, "request": request}
    if origin is not None:
        request |= {"fit": origin.fit, "mask_feather": origin.feather}
        told["source"] = {name: asdict(origin)[name] for name in ("image_sha256", "mask_sha256", "painted")}
    return told


def chunk(told: Mapping[str, Any]) -> dict[str, str]:
    """A recipe as the text chunk of a PNG; in ASCII, which any reader of PNG reads."""
    return {KEY: json.dumps(told, separators=(",", ":"))}


def read(data: bytes) -> dict[str, Any] | None:
    """The recipe in a PNG; None where the file is no PNG or holds none."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            told = json.loads(picture.info[KEY])
    except Exception:
        # A broken file makes its reader raise many kinds of errors: all of them mean that there is no recipe.
        return None
    return told if isinstance(told, dict) and isinstance(told.get("request"), dict) else None


def _written(expression: Expression) -> str | dict[str, Any]:
    """The canonical text, with every model; a tree where the text would be longer than a request may have."""
    text = grammar.format(expression)
    return text if len(text) <= grammar.MAX_TEXT else tree_of(expression)
