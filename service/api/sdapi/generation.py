"""POST /sdapi/v1/txt2img and /sdapi/v1/img2img."""

import asyncio
import uuid

from fastapi import APIRouter, Request, Response

from service.api.addresses import job_headers
from service.api.bodies import Route, let_go
from service.api.caller import CallerDep
from service.api.sdapi.answers import ImagesResponse, answer
from service.api.sdapi.inpainting import Sent
from service.api.sdapi.schemas import ImageToImage, Processing, TextToImage
from service.api.sdapi.sessions import Sessions, SessionsDep
from service.api.waiting import abandoned, await_outcome
from service.callers import Caller
from service.engine.job import CancelledJobError
from service.orders import Order, accept
from service.rendering import Rendering
from service.services import Services, ServicesDep

router = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"], route_class=Route)


@router.post("/txt2img", response_model=ImagesResponse)
async def txt2img(
    body: TextToImage, request: Request, services: ServicesDep, sessions: SessionsDep, caller: CallerDep
) -> Response:
    """Pictures of a prompt; `A AND B` and the other operators compose."""
    return await _generate(body, None, request, services, sessions, caller)


@router.post("/img2img", response_model=ImagesResponse)
async def img2img(
    body: ImageToImage, request: Request, services: ServicesDep, sessions: SessionsDep, caller: CallerDep
) -> Response:
    """Pictures that begin from a picture, or paint in it where the mask is white."""
    sent = Sent(body, services.settings.max_image_pixels)
    return await _generate(body, sent, request, services, sessions, caller)


async def _generate(
    body: Processing,
    sent: Sent | None,
    request: Request,
    services: Services,
    sessions: Sessions,
    caller: Caller,
) -> Response:
    """Queue a request and answer with its pictures; without any where the job was interrupted."""
    written = await asyncio.to_thread(body.written, services.catalog.names, sessions.models.of(caller.session))
    order = Order(
        written, body.params, body.ask(caller.id, services.settings.max_timeout_s), None if sent is None else sent.known
    )
    rendering = Rendering(task=body.force_task_id or f"task({uuid.uuid4().hex})")
    record = await accept(order, services, caller, rendering)
    del order
    body.let_go()
    await let_go(request)
    job = record.job
    headers = job_headers(request, job)
    try:
        outcome = await await_outcome(job, request, services.backend)
        if outcome is None:
            return abandoned()
    except CancelledJobError:
        outcome = None
    finish = None if sent is None else sent.finish
    told = await asyncio.to_thread(answer, record, body, outcome, finish)
    return Response(told, media_type="application/json", headers=headers)
