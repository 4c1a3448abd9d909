"""GET and POST /sdapi/v1/options: each caller has a default model of its own."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from service.api.bodies import Route
from service.api.caller import CallerDep
from service.api.sdapi.schemas import checkpoint
from service.api.sdapi.sessions import SessionsDep
from service.schemas.fields import NAME_LENGTH
from service.services import ServicesDep

router = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"], route_class=Route)


class Options(BaseModel):
    """What may be set; any other key is accepted and has no effect."""

    model_config = ConfigDict(extra="ignore")

    sd_model_checkpoint: Annotated[str | None, Field(max_length=NAME_LENGTH)] = None


@router.get("/options")
async def get_options(services: ServicesDep, sessions: SessionsDep, caller: CallerDep) -> dict[str, Any]:
    """The caller's model, and what clients look for besides."""
    return {
        "sd_model_checkpoint": sessions.models.of(caller.session) or services.catalog.names[0],
        "sd_checkpoint_hash": None,
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
        "live_previews_enable": True,
        "enable_pnginfo": True,
    }


@router.post("/options")
async def set_options(body: Options, services: ServicesDep, sessions: SessionsDep, caller: CallerDep) -> None:
    """Choose the model of the caller's requests that name none."""
    if body.sd_model_checkpoint:
        model = checkpoint(body.sd_model_checkpoint, services.catalog.names, ("sd_model_checkpoint",))
        sessions.models.choose(caller.session, model)
