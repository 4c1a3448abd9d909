"""The catalogue over HTTP."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path

from service.api.bodies import Route
from service.api.problem import Problem
from service.schemas.answers import ModelInfo, ModelList, Space
from service.schemas.fields import NAME_LENGTH
from service.services import Services, ServicesDep

router = APIRouter(prefix="/v1", tags=["models"], route_class=Route)


@router.get("/models")
async def list_models(services: ServicesDep) -> ModelList:
    """Every model of the catalogue: its data space, its sizes, with which others it composes."""
    return ModelList(data=[_info(services, name) for name in services.catalog.names])


@router.get("/models/{name}", responses={404: {"model": Problem}})
async def get_model(name: Annotated[str, Path(max_length=NAME_LENGTH)], services: ServicesDep) -> ModelInfo:
    """One model."""
    return _info(services, name)


def _info(services: Services, name: str) -> ModelInfo:
    catalog = services.catalog
    entry = catalog.entry(name)
    state = services.backend.state(name)
    info = ModelInfo(
        id=name,
        created=services.created,
        loaded=state.loaded,
        default=name == catalog.names[0],
        family=entry.family,
        dtype=catalog.dtype(name),
        error=state.failure,
    )
    card = state.card
    if card is None:
        return info
    others = {other: services.backend.state(other).card for other in catalog.names if other != name}
    return info.model_copy(
        update={
            "space": Space(**asdict(card.space)),
            "composes_with": [n for n, other in others.items() if other and other.space == card.space],
            "takes_prompts": card.takes_prompts,
            "width": card.width,
            "height": card.height,
            "multiple": card.multiple,
            "sigma_min": card.sigma_min,
            "sigma_max": card.sigma_max,
            "parameters": card.parameters,
            "memory_bytes": card.memory,
            "loras": list(card.adapters),
            "guidance": card.guidance,
            "paints": card.paints,
            "calibrated": card.calibrated,
            "lora_errors": dict(card.broken_adapters) or None,
        }
    )
