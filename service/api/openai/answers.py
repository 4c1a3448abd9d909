"""The answer to a completed request."""

import base64
from collections.abc import Callable

from service.api.openai.schemas import GeneratedImage, GeneratedImages, Usage
from service.engine.job import Job, Outcome
from service.files import encoded
from service.registry import Record


def answer(record: Record, outcome: Outcome, address: Callable[[int], str]) -> str:
    """The whole answer as JSON. Not for the event loop's thread.

    Args:
        record: The job and how its pictures are wanted.
        outcome: What it came to.
        address: The index of a picture → where to fetch it.
    """
    if record.rendering.by_url:
        data = [GeneratedImage(url=address(i)) for i in range(len(outcome.pictures))]
    else:
        files = encoded(record, outcome, record.rendering.image_format)
        data = [GeneratedImage(b64_json=base64.b64encode(file).decode()) for file in files]
    told = GeneratedImages(
        created=int(record.job.created),
        data=data,
        size=size_of(outcome.pictures.shape),
        output_format=record.rendering.image_format,
        usage=usage(record.job),
    )
    return told.model_dump_json(exclude_none=True)


def usage(job: Job) -> Usage:
    """What a job came to: the network rows of all its steps."""
    return Usage(output_tokens=job.plan.work, total_tokens=job.plan.work)


def size_of(shape: tuple[int, ...]) -> str:
    """The size of pictures of a shape (images, height, width, 3)."""
    _, height, width, _ = shape
    return f"{width}x{height}"
