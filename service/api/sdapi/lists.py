"""What there is to choose from, in the dialect's lists; and what is told of the machine."""

import os
from typing import Any

from fastapi import APIRouter

from pipelines.kernel import Kernel
from pipelines.noise import Grid
from service.api.bodies import Route
from service.api.sdapi.script import NAME, Script
from service.services import ServicesDep

router = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"], route_class=Route)


@router.get("/sd-models")
async def sd_models(services: ServicesDep) -> list[dict[str, Any]]:
    """The catalogue. A model's name is its title and its file's name too; nothing is told of where it lies."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in services.catalog.names
    ]


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """The kernels."""
    return [{"name": kernel.value, "aliases": [kernel.value.replace("_", " ")], "options": {}} for kernel in Kernel]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """The grids of noise levels; "automatic" is the model's favourite."""
    return [
        {"name": name, "label": name.capitalize(), "aliases": None, "default_rho": -1, "need_inner_model": False}
        for name in ("automatic", *(grid.value for grid in Grid))
    ]


@router.get("/loras")
async def loras(services: ServicesDep) -> list[dict[str, Any]]:
    """The LoRAs of the models that were loaded."""
    catalog = services.catalog
    cards = (services.backend.state(model).card for model in catalog.names)
    names = dict.fromkeys(name for card in cards if card for name in card.adapters)
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]


@router.get("/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    """None, by that name, as the WebUI has it."""
    return [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}]


@router.get("/embeddings")
async def embeddings() -> dict[str, Any]:
    """None."""
    return {"loaded": {}, "skipped": {}}


@router.get("/latent-upscale-modes")
@router.get("/sd-vae")
@router.get("/prompt-styles")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
async def nothing() -> list[dict[str, Any]]:
    """There are none."""
    return []


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """The one always-on script."""
    return {"txt2img": [NAME], "img2img": [NAME]}


@router.get("/script-info")
async def script_info() -> list[dict[str, Any]]:
    """The script's arguments in their order, with their bounds."""
    schema = Script.model_json_schema()
    arguments = [
        {"label": name, "value": value.get("default"), **_bounds(value, schema["$defs"])}
        for name, value in schema["properties"].items()
    ]
    return [
        {"name": NAME, "is_alwayson": True, "is_img2img": is_img2img, "args": arguments} for is_img2img in (False, True)
    ]


def _bounds(schema: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """The bounds of an argument, whether or not null is allowed besides.

    Args:
        schema: Of the argument.
        named: The schemas that it may refer to.
    """
    schema = schema.get("anyOf", [schema])[0]
    schema = named.get(schema.get("$ref", "").rpartition("/")[2], schema)
    return {
        "minimum": schema.get("minimum", schema.get("exclusiveMinimum")),
        "maximum": schema.get("maximum"),
        "step": None,
        "choices": schema.get("enum"),
    }


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """Nothing is told of how the service was started."""
    return {}


@router.get("/memory")
async def memory() -> dict[str, Any]:
    """The machine's memory in bytes; the device's is told by /metrics and /v1/models."""
    try:
        page, total, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        ram: dict[str, Any] = {"free": page * free, "used": page * (total - free), "total": page * total}
    except (ValueError, OSError):
        ram = {"error": "unavailable"}
    return {"ram": ram, "cuda": {"error": "unavailable"}}


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-vae")
@router.post("/unload-checkpoint")
@router.post("/reload-checkpoint")
async def settled() -> None:
    """Nothing to do: operators reload the catalogue, and models are loaded and unloaded as requests need them."""
