"""What the routes say of jobs: answers, job documents, events."""

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Mapping

from sse_starlette import ServerSentEvent

from pipelines.composition import leaves
from pipelines.params import image_seed
from service.engine.events import Event
from service.engine.job import Job, Outcome, Phase, Point, Preview
from service.errors import Problem, describe
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


def encoded(outcome: Outcome, image_format: ImageFormat) -> list[bytes]:
    """The pictures of an outcome, encoded. Neither for the event loop's thread nor for the device's."""
    return [encode_picture(pixels, image_format) for pixels in outcome.pictures]


def summary(record: Record, outcome: Outcome) -> SuperposeResponse:
    """What there is to say of a completed composition in few words: pictures as addresses, no trajectory."""
    job = record.job
    prompts = leaves(job.expression)
    names = component_names(prompts)
    calls = job.params.calls
    weights = outcome.mean_weights.tolist() if calls else [[None] * len(names)] * len(outcome.pictures)
    return SuperposeResponse(
        id=job.id,
        created=int(job.created),
        models=list(dict.fromkeys(prompt.model for prompt in prompts)),
        components=names,
        seed=job.params.seed,
        images=[
            Picture(
                url=f"{job_path(job)}/images/{i}",
                seed=image_seed(job.params.seed, i),
                log_density=dict(zip(names, map(_known, outcome.log_density[i].tolist()), strict=True)),
                weight=dict(zip(names, weights[i], strict=True)),
                clamp_rate=float(outcome.clamp_rate[i]),
            )
            for i in range(len(outcome.pictures))
        ],
        timings=Timings(queued_ms=outcome.queued_s * 1e3, run_ms=outcome.run_s * 1e3, steps=calls),
    )


def _known(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None


def answer(record: Record, outcome: Outcome) -> str:
    """The whole answer to a completed composition, as JSON. It may be large: not for the event loop's thread."""
    told = summary(record, outcome)
    if record.body.response_format == "b64_json":
        for picture, data in zip(told.images, encoded(outcome, record.body.output_format), strict=True):
            picture.url, picture.b64_json = None, base64.b64encode(data).decode()
    if record.body.include_trajectory:
        told.trajectory = [trajectory_point(point) for point in outcome.trajectory]
    return told.model_dump_json()


def trajectory_point(point: Point) -> TrajectoryPoint:
    """One step of a trajectory."""
    return TrajectoryPoint(
        step=point.step,
        sigma=point.sigma,
        log_density=[[_known(nats) for nats in row] for row in point.log_density.tolist()],
        weight=point.weights.tolist(),
    )


def job_info(record: Record, positions: Mapping[str, int], *, with_result: bool = True) -> JobInfo:
    """A job as it stands.

    Args:
        record: The job and its request.
        positions: Where waiting jobs stand, as :meth:`Engine.positions` told.
        with_result: Whether to say what a completed job came to.
    """
    job = record.job
    phase = job.phase
    prompts = leaves(job.expression)
    info = JobInfo(
        id=job.id,
        status=phase,
        created=int(job.created),
        models=list(dict.fromkeys(prompt.model for prompt in prompts)),
        components=component_names(prompts),
        seed=job.params.seed,
        step=job.index,
        steps=job.params.calls,
        queue_position=positions.get(job.id) if phase is Phase.QUEUED else None,
    )
    if phase is Phase.FAILED:
        return info.model_copy(update={"error": _reason(job)})
    if phase is Phase.COMPLETED and with_result:
        return info.model_copy(update={"result": summary(record, job.result.result())})
    return info


def _reason(job: Job) -> str:
    """Why a job failed."""
    error = job.result.exception()
    return _problem(job, error).detail if isinstance(error, Exception) else str(error)


def _problem(job: Job, error: Exception) -> Problem:
    """The problem of a failed job; the engine has logged its inside."""
    return describe(error, job_path(job), reference=f"job id {job.id}")


async def when_over(job: Job) -> None:
    """Wait until a job is over, however it ends."""
    over = asyncio.wrap_future(job.result)
    await asyncio.wait([over])
    if not over.cancelled():
        over.exception()  # looked at, so that asyncio does not report it as forgotten


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
            told = ProgressEvent(steps=record.job.params.calls, **trajectory_point(point).model_dump())
            return told.model_dump_json()
        case Preview(step=step, pictures=pictures):
            images = [await asyncio.to_thread(encode_picture, pixels, ImageFormat.JPEG) for pixels in pictures]
            return PreviewEvent(step=step, images=[base64.b64encode(i).decode() for i in images]).model_dump_json()
        case Outcome() as outcome:
            return await asyncio.to_thread(answer, record, outcome)
        case Exception() as error:
            return _problem(record.job, error).model_dump_json(exclude_none=True)
        case other:
            raise TypeError(f"no event carries a {type(other).__name__}")
