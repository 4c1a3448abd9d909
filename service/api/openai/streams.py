"""A job's events as OpenAI tells them: partial images, the finished one, [DONE]."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from sse_starlette import ServerSentEvent

from service.api.openai.answers import size_of, usage
from service.api.openai.errors import error_of
from service.api.openai.schemas import Completed, PartialImage
from service.engine.job import Outcome, Preview
from service.faults import fault_of
from service.files import encoded
from service.pictures import encode_picture
from service.registry import Record

Kind = Literal["image_generation", "image_edit"]
_DONE: Final = "[DONE]"


async def events(record: Record, kind: Kind) -> AsyncIterator[ServerSentEvent]:
    """The events of a job of one picture. A failure is an event too, of the form that the client raises from."""
    partial = 0
    async for event in record.job.channel.listen():
        match event.payload:
            case Preview(pictures=pictures):
                told = PartialImage(
                    type=f"{kind}.partial_image",
                    partial_image_index=partial,
                    created_at=int(time.time()),
                    b64_json=await _encoded(pictures, record),
                    size=size_of(pictures.shape),
                    output_format=record.rendering.image_format,
                )
                partial += 1
                yield ServerSentEvent(told.model_dump_json(), event=told.type)
            case Outcome(pictures=pictures) as outcome:
                (file,) = await asyncio.to_thread(encoded, record, outcome, record.rendering.image_format)
                whole = Completed(
                    type=f"{kind}.completed",
                    created_at=int(time.time()),
                    b64_json=base64.b64encode(file).decode(),
                    size=size_of(pictures.shape),
                    output_format=record.rendering.image_format,
                    usage=usage(record.job),
                )
                yield ServerSentEvent(whole.model_dump_json(), event=whole.type)
                yield ServerSentEvent(_DONE)
            case Exception() as error:
                fault = fault_of(error, reference=f"job id {record.job.id}")
                yield ServerSentEvent(json.dumps(error_of(fault)), event="error")


async def _encoded(pictures: NDArray[np.uint8], record: Record) -> str:
    data = await asyncio.to_thread(
        encode_picture, pictures[0], record.rendering.image_format, quality=record.rendering.quality
    )
    return base64.b64encode(data).decode()
