"""POST /sdapi/v1/png-info: what a picture says of its making."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.bodies import Route
from service.api.sdapi.answers import PARAMETERS
from service.infotext import parse
from service.pictures import picture_text
from service.services import ServicesDep

router = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"], route_class=Route)


class PngInfoRequest(BaseModel):
    """A picture."""

    image: Annotated[str, Field(description="In base64 or as a data: URI.")]


class PngInfo(BaseModel):
    """What a picture says.

    Attributes:
        info: Its parameters as text; empty where it has none.
        items: What else it says, by keyword.
        parameters: The parameters, read.
    """

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


@router.post("/png-info")
async def png_info(body: PngInfoRequest, services: ServicesDep) -> PngInfo:
    """The text chunks of a PNG; pictures of other formats say nothing."""
    return await services.decoded(_read, body.image.strip(), services.settings.max_image_pixels)


def _read(image: str, max_pixels: int) -> PngInfo:
    items = picture_text(image, "image", max_pixels)
    info = items.pop(PARAMETERS, "")
    return PngInfo(info=info, items=items, parameters=parse(info) if info else {})
