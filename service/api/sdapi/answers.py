"""What the dialect answers of a picture: images, the echo of the request, and the info, JSON within JSON."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipelines.params import image_seed
from service.api.sdapi.schemas import Processing
from service.engine.job import Job, Outcome
from service.files import told
from service.infotext import VERSION, infotext
from service.pictures import ImageFormat, encode_picture
from service.registry import Record

PARAMETERS: Final = "parameters"
"""The keyword under which a PNG tells what it was made of."""
Finish = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class ImagesResponse(BaseModel):
    """The answer to txt2img and img2img."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


def answer(record: Record, body: Processing, outcome: Outcome | None, finish: Finish | None = None) -> str:
    """The whole answer, as JSON. It may be large: not for the event loop's thread.

    Args:
        record: The job.
        body: Its request.
        outcome: What it came to; None where it was interrupted: then there are no pictures.
        finish: What a picture goes through last, if anything.
    """
    job = record.job
    drawn = [] if outcome is None else [finish(pixels) if finish else pixels for pixels in outcome.pictures]
    texts = [infotext(job.plan, image_seed(job.params.seed, i)) for i in range(len(drawn))]
    images = [
        base64.b64encode(
            encode_picture(pixels, ImageFormat.PNG, {PARAMETERS: text} | told(record, i, pixels.shape[1::-1]))
        ).decode()
        for i, (pixels, text) in enumerate(zip(drawn if body.send_images else [], texts, strict=False))
    ]
    size = drawn[0].shape[1::-1] if drawn else (job.plan.width, job.plan.height)
    info = _info(job, body, texts, size, interrupted=outcome is None)
    return ImagesResponse(images=images, parameters=body.echo(), info=json.dumps(info)).model_dump_json()


def _info(job: Job, body: Processing, texts: list[str], size: tuple[int, int], *, interrupted: bool) -> dict[str, Any]:
    params, count = job.params, job.params.num_images
    seeds = [image_seed(params.seed, i) for i in range(count)]
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * count,
        "negative_prompt": params.negative_prompt,
        "all_negative_prompts": [params.negative_prompt] * count,
        "seed": params.seed,
        "all_seeds": seeds,
        "subseed": params.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": size[0],
        "height": size[1],
        "sampler_name": params.kernel.value,
        "cfg_scale": params.guidance_scale,
        "steps": params.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.plan.lead,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": params.strength if params.strength < 1 else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": timestamp(job),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
        "interrupted": interrupted,
    }


def timestamp(job: Job) -> str:
    """When a job came, in UTC, as the WebUI writes it."""
    return datetime.fromtimestamp(job.created, UTC).strftime("%Y%m%d%H%M%S")
