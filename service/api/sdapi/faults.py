"""Faults as the WebUI tells them: {error, detail, body, errors}."""

import re
from collections.abc import Mapping
from typing import Final

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.faults import Fault, Place

# The service's own names of what a request holds → the dialect's.
_NAMES: Final[Mapping[str, str]] = {
    "expression": "prompt",
    "terms": "prompt",
    "guidance_scale": "cfg_scale",
    "num_images": "batch_size",
    "strength": "denoising_strength",
    "image": "init_images",
    "kernel": "sampler_name",
    "grid": "scheduler",
    "mask_feather": "mask_blur",
}
# Those that are no words of plain English: they are renamed within sentences too.
_IN_SENTENCES: Final = re.compile(r"\b(guidance_scale|num_images|mask_feather)\b")


class SdapiError(BaseModel):
    """Why a request was refused or failed."""

    error: str
    detail: str
    body: str = ""
    errors: str


def render(request: Request, fault: Fault) -> JSONResponse:
    """The response that carries a fault."""
    detail = _renamed(fault.detail)
    more = [f"and {fault.left_out} more"] if fault.left_out else []
    places = "; ".join([*map(_told, fault.places), *more])
    told = SdapiError(error=fault.status.phrase, detail=places or detail, errors=places or detail)
    return JSONResponse(told.model_dump(), fault.status, fault.headers)


def _told(place: Place) -> str:
    """What is wrong with a field, by the field's name."""
    field, detail = _field(place), _renamed(place.detail)
    return detail if detail.startswith(field) else f"{field}: {detail}"


def _field(place: Place) -> str:
    """A field's path in words: "alwayson_scripts.superdiff.models"."""
    first, *rest = place.path or ("body",)
    name = _NAMES.get(str(first))
    # Within a prompt, a column tells the place: there are no fields.
    return name if name == "prompt" else ".".join(map(str, (name or first, *rest)))


def _renamed(sentence: str) -> str:
    return _IN_SENTENCES.sub(lambda found: _NAMES[found[0]], sentence)
