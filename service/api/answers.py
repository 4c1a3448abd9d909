"""What the routes say of jobs: answers, job documents, events."""

import asyncio
import base64
from collections.abc import AsyncIterator

from sse_starlette import ServerSentEvent

from pipelines.composition import leaves
from pipelines.sampler import image_seed
from service.engine.engine import Engine
from service.engine.events import Event
from service.engine.job import Job, Outcome, Phase, Point, Preview
from service.errors import describe
from service.pictures import encode_picture
from service.registry import Record
from service.schemas import (
    ImageFormat,
    JobInfo,
    Picture,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    SuperposeResponse,
    Timings,
    TrajectoryPoint,
    component_names,
)


def job_path(job: Job) -> str:
    """Where a job is."""
    return f"/v1/jobs/{job.id}"


async def encoded(outcome: Outcome, image_format: ImageFormat) -> list[bytes]:
    """The pictures of an outcome, encoded off the event loop and off the device's thread."""
    return [await asyncio.to_thread(encode_picture, pixels, image_format) for pixels in outcome.pictures]


async def answer(record: Record, outcome: Outcome, *, by_url: bool | None = None) -> SuperposeResponse:
    """The answer to a composition that is completed.

    Args:
        record: The job and its request.
        outcome: What came out.
        by_url: Whether pictures go as addresses; None for what the request asked for.
    """
    job, body = record.job, record.body
    prompts = leaves(job.expression)
    names = component_names(prompts)
    if by_url is None:
        by_url = body.response_format == "url"
    pictures = [] if by_url else await encoded(outcome, body.output_format)
    return SuperposeResponse(
        id=job.id,
        created=int(job.created),
        models=list(dict.fromkeys(prompt.model for prompt in prompts)),
        components=names,
        seed=job.params.seed,
        images=[
            Picture(
                b64_json=None if by_url else base64.b64encode(pictures[i]).decode(),
                url=f"{job_path(job)}/images/{i}" if by_url else None,
                seed=image_seed(job.params.seed, i),
                log_density=dict(zip(names, outcome.log_density[i].tolist(), strict=True)),
                weight=dict(zip(names, outcome.mean_weights[i].tolist(), strict=True)),
                clamp_rate=float(outcome.clamp_rate[i]),
            )
            for i in range(len(outcome.pictures))
        ],
        trajectory=[trajectory_point(point) for point in outcome.trajectory] or None,
        timings=Timings(queued_ms=outcome.queued_s * 1e3, run_ms=outcome.run_s * 1e3, steps=job.params.steps),
    )


def trajectory_point(point: Point) -> TrajectoryPoint:
    """One step of a trajectory."""
    return TrajectoryPoint(
        step=point.step, sigma=point.sigma, log_density=point.log_density.tolist(), weight=point.weights.tolist()
    )


async def job_info(record: Record, engine: Engine) -> JobInfo:
    """A job as it stands."""
    job = record.job
    prompts = leaves(job.expression)
    info = JobInfo(
        id=job.id,
        status=job.phase,
        created=int(job.created),
        models=list(dict.fromkeys(prompt.model for prompt in prompts)),
        components=component_names(prompts),
        seed=job.params.seed,
        step=job.params.steps if job.phase in {Phase.DECODING, Phase.COMPLETED} else job.index,
        steps=job.params.steps,
        queue_position=engine.position(job) if job.phase is Phase.QUEUED else None,
    )
    if job.phase is Phase.FAILED:
        return info.model_copy(update={"error": _reason(job)})
    if job.phase is Phase.COMPLETED:
        return info.model_copy(update={"result": await answer(record, job.result.result(), by_url=True)})
    return info


def _reason(job: Job) -> str:
    """Why a job failed."""
    error = job.result.exception()
    return describe(error, job_path(job)).detail if isinstance(error, Exception) else str(error)


async def events(record: Record, after: int = 0) -> AsyncIterator[ServerSentEvent]:
    """A job's events from ``after`` on, as they come, up to the last."""
    async for event in record.job.channel.listen(after):
        yield ServerSentEvent(data=await _told(record, event), event=event.kind, id=str(event.id))


async def _told(record: Record, event: Event) -> str:
    """An event's data, as JSON."""
    match event.payload:
        case int() as position:
            return QueuedEvent(position=position).model_dump_json()
        case Point() as point:
            told = ProgressEvent(steps=record.job.params.steps, **trajectory_point(point).model_dump())
            return told.model_dump_json()
        case Preview(step=step, pictures=pictures):
            images = [await asyncio.to_thread(encode_picture, pixels, ImageFormat.JPEG) for pixels in pictures]
            return PreviewEvent(step=step, images=[base64.b64encode(i).decode() for i in images]).model_dump_json()
        case Outcome() as outcome:
            return (await answer(record, outcome)).model_dump_json()
        case Exception() as error:
            return describe(error, job_path(record.job)).model_dump_json(exclude_none=True)
        case other:
            raise TypeError(f"no event carries a {type(other).__name__}")
